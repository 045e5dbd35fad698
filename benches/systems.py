"""PostgreSQL beside weir for the figures of `benches/run`. It syncs no commits: its disk is not what is measured."""
import contextlib, os, pathlib, shutil, subprocess, sys, tempfile

from harness import free_port

@contextlib.contextmanager
def postgres():
    """The URL of an empty database. PostgreSQL does not run as root: then it runs as the user that its package creates."""
    installed = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'))
    programs = str(installed[-1]) + '/' if installed else ''
    user = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups'] if os.getuid() == 0 else []
    folder, port = tempfile.mkdtemp(prefix='weir-postgres-'), free_port()
    if user: shutil.chown(folder, 'postgres', 'postgres')
    def run(program, *args, check=True):
        subprocess.run([*user, programs + program, *args], check=check, stdout=subprocess.DEVNULL, cwd=folder)
    options = f'-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off -c synchronous_commit=off'
    try:
        run('initdb', '-D', f'{folder}/data', '-U', 'weir', '-A', 'trust', '--no-sync', '-E', 'UTF8', '--locale=C')
        run('pg_ctl', '-D', f'{folder}/data', '-w', '-l', f'{folder}/log', '-o', options, 'start')
        yield f'postgres://weir@127.0.0.1:{port}/postgres?sslmode=disable'
    except subprocess.CalledProcessError:
        log = pathlib.Path(folder, 'log')
        if log.exists(): print(log.read_text()[-2000:], file=sys.stderr)
        raise
    finally:
        run('pg_ctl', '-D', f'{folder}/data', '-m', 'immediate', 'stop', check=False)
        shutil.rmtree(folder, ignore_errors=True)
