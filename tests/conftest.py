"""What every test stands on."""

import signal

for number in (
    signal.SIGINT,
    signal.SIGHUP,
):  # nohup and background shells ignore them, and children would inherit that
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
