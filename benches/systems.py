"""Real systems beside weir for the figures of `benches/run`: a broker of Kafka, and PostgreSQL. Both with their own defaults, except
that PostgreSQL syncs no commits: its disk is not what is measured."""
import contextlib, os, pathlib, shutil, socket, subprocess, tempfile

broker = str(pathlib.Path(__file__).resolve().parent / 'kafka' / 'broker')

def free_port():
    """A port that is free, as is the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            try: second.bind(('127.0.0.1', first.getsockname()[1] + 1))
            except OSError: continue
            return first.getsockname()[1]

class Kafka:
    """A broker in a folder."""
    def __init__(self, folder, port): self.folder, self.address = folder, f'127.0.0.1:{port}'
    def topic(self, name, partitions=3): subprocess.run([broker, 'topic', self.folder, name, str(partitions)], check=True)

@contextlib.contextmanager
def kafka():
    folder, port = tempfile.mkdtemp(prefix='weir-broker-'), free_port()
    try:
        subprocess.run([broker, 'start', folder, str(port)], check=True, stdout=subprocess.DEVNULL)
        yield Kafka(folder, port)
    finally:
        subprocess.run([broker, 'stop', folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)

@contextlib.contextmanager
def postgres():
    """The URL of an empty database. PostgreSQL does not run as root: then it runs as the user that its package creates."""
    installed = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'))
    programs = str(installed[-1]) + '/' if installed else ''
    user = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups'] if os.getuid() == 0 else []
    folder, port = tempfile.mkdtemp(prefix='weir-postgres-'), free_port()
    if user: shutil.chown(folder, 'postgres', 'postgres')
    def run(program, *args):
        subprocess.run([*user, programs + program, *args], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    run('initdb', '-D', f'{folder}/data', '-U', 'weir', '-A', 'trust', '--no-sync', '-E', 'UTF8')
    options = f'-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off -c synchronous_commit=off'
    run('pg_ctl', '-D', f'{folder}/data', '-w', '-l', f'{folder}/log', '-o', options, 'start')
    try:
        yield f'postgres://weir@127.0.0.1:{port}/postgres?sslmode=disable'
    finally:
        run('pg_ctl', '-D', f'{folder}/data', '-m', 'immediate', 'stop')
        shutil.rmtree(folder, ignore_errors=True)
