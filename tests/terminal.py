"""Runs a command in a pseudo-terminal of 80 columns and 24 lines: copies standard input to it and what it writes to standard output,
and ends with its exit code. For tests/terminal.rs."""
import fcntl, os, pty, select, struct, sys, termios

pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])

inputs = [terminal, 0]
while True:
    for source in select.select(inputs, [], [])[0]:
        try:
            data = os.read(source, 65536)
        except OSError:  # The command has ended.
            data = b""
        if source == terminal and not data:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if source == terminal:
            while data:
                data = data[os.write(1, data):]
        elif data:
            while data:
                data = data[os.write(terminal, data):]
        else:
            inputs.remove(0)
