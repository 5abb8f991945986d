
$("sure").value = 0.8;
showSure();
show();
openCamera(); poll();
