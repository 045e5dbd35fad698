#!/usr/bin/env python3
"""Clients that go too far, all at once, against a running weir: `benches/abuse.py HOST:PORT UPSTREAM_PORT SECONDS`.

Each kind runs in a thread of its own until the time is over, and counts what it was answered. At the end one line of JSON says, of
each kind, how often which status came back. WEIR_KINDS names some of them, separated by commas, instead of all. UPSTREAM_PORT is
where weir finds the websocket server that pings and never reads.
The streams that it writes to are `hostile` (`id`, `t`, `s`) and `events` (`event_type`, `ts`, `params`)."""
import base64, collections, gzip, hashlib, http.client, json, os, socket, sys, threading, time

HOST, PORT = '127.0.0.1', 0
KINDS = {}
answers = collections.defaultdict(collections.Counter)
over = threading.Event()

def kind(pause):
    """A kind of abuse: repeated until the time is over, with so many seconds between two."""
    def register(function):
        KINDS[function.__name__] = (function, pause)
        return function
    return register

def ask(method, path, body=None, headers={}, timeout=45):
    """The status of an answer, or the name of what went wrong; the answer is read and thrown away."""
    connection = http.client.HTTPConnection(HOST, PORT, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        while response.read(1 << 16): pass
        return response.status
    except (OSError, http.client.HTTPException) as error: return type(error).__name__
    finally: connection.close()

def sql(statement): return ask('POST', '/api/v1/sql', json.dumps({'sql': statement}), {'Content-Type': 'application/json'})
def post(stream, body, headers={}): return ask('POST', f'/api/v1/streams/{stream}/events', body, {'Content-Type': 'application/x-ndjson', **headers}, 120)

DEEP = ['select ' + '+'.join(['1'] * 3000), "select 'a'" + "||'a'" * 3000, 'select 1' + '::int' * 3000, 'select ' + '(' * 3000 + '1' + ')' * 3000,
        'select count(*) from hostile where ' + ' or '.join(f'id = {i}' for i in range(3000)), 'select ' + 'not ' * 3000 + 'true',
        'select ' + 'case when true then ' * 500 + '1' + ' end' * 500, 'select ' + 'abs(' * 1000 + '1' + ')' * 1000,
        ' union all '.join(['select 1'] * 2000), 'select * from ' + '(select * from ' * 300 + 'hostile' + ') x' * 300]
@kind(.5)
def deep_statements():
    for statement in DEEP: yield sql(statement)

LARGE = ["select length(repeat('x', 1000000000))", 'select array_length(array_repeat(1, 1000000000))', "select length(lpad('x', 1000000000, 'y'))",
         "select length(replace(repeat('a', 10000000), 'a', repeat('b', 100)))", "select count(*) from unnest(range(0, 10000000000))",
         "select max(length(regexp_replace(repeat('a', 1000000), 'a', repeat('b', 1000), 'g'))) from generate_series(1, 100)",
         'select count(*) from hostile group by cube(' + ','.join(f'id % {i}' for i in range(2, 16)) + ')',
         'with c0 as (select 1 as x)' + ''.join(f', c{i} as (select a.x from c{i - 1} a, c{i - 1} b)' for i in range(1, 24)) + ' select count(*) from c23',
         "select array_agg(repeat(s, 100000)) from hostile", "select string_agg(repeat('x', 100000), '') from generate_series(1, 100000)",
         "select length(concat(" + ','.join(["repeat('x', 1000000)"] * 500) + "))", 'select * from generate_series(1, 1000000000) order by value desc']
@kind(.5)
def statements_that_make_much_of_little():
    for statement in LARGE: yield sql(statement)

FOREVER = 'select count(*) from hostile x, hostile y, hostile z where x.id + y.id + z.id = -1'
@kind(1)
def statements_that_compute_for_ever(): yield sql(FOREVER)

@kind(.2)
def clients_that_hang_up():
    body = json.dumps({'sql': FOREVER})
    with socket.create_connection((HOST, PORT), 10) as s:
        s.sendall(f'POST /api/v1/sql HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}'.encode())
        time.sleep(.1)
    yield 'left'

@kind(1)
def answers_that_grow_when_written():
    yield sql('select value as ' + 'n' * 5000 + ' from generate_series(1, 99000)')
    yield sql('select repeat(chr(1), 600) as x from generate_series(1, 99000)')
    yield ask('GET', '/api/v1/count?stream=hostile&by=s')

MANY = {'numbers': gzip.compress(b'[' + b'1,' * (8 << 20) + b'1]'), 'objects': gzip.compress(b'{}\n' * (8 << 20)), 'blanks': gzip.compress(b'\n' * (64 << 20))}
@kind(1)
def small_records_in_gzip():
    for body in MANY.values(): yield post('hostile', body, {'Content-Encoding': 'gzip', 'Content-Type': 'application/json'})

@kind(1)
def maps_with_many_keys():
    keys = ','.join('"%05x":""' % (i % 45000) for i in range(90000))
    yield post('events', '{"event_type":"x","ts":1714557600,"params":{' + keys + '}}\n')
    yield post('events', '{"event_type":"x","ts":1714557600,"params":{"k":' + '[' * 5000 + ']' * 5000 + '}}\n')

numbers = iter(range(1 << 40))
@kind(1)
def long_values():
    lines = (json.dumps({'event_type': f'{next(numbers)}-' + 'x' * 100_000, 'ts': 1714557600 + i, 'params': {}}) for i in range(20))
    yield post('events', '\n'.join(lines) + '\n')
    yield post('hostile', json.dumps({'id': 'x' * 500_000, 't': 0}) + '\n', {'Idempotency-Key': f'k{next(numbers)}'})

@kind(0)
def bodies_that_never_come(): yield from held(b'POST /api/v1/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{', [b'sql', b'rebuild', b'backup', b'streams/hostile/events'])

@kind(0)
def answers_that_nobody_reads(): yield from held(b'GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n' * 400, [b'openapi.json', b'metrics'])

@kind(0)
def subscribers_that_nobody_reads(): yield from held(b'GET /api/v1/live?stream=%s HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\r\n\r\n', [b'hostile', b'events'])

def held(head, targets):
    """As many connections as one client gets, each held until the server ends it or 40 s have passed."""
    connections = []
    for i in range(150):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(2)
        connections.append(s)
        try:
            s.connect((HOST, PORT))
            s.sendall(head.replace(b'%s', targets[i % len(targets)]))
            yield 'held'
        except OSError as error: yield type(error).__name__
    over.wait(40)
    for s in connections: s.close()

def pinging_upstream(listener):
    """A websocket server whose pings never end and that reads nothing."""
    def serve(connection):
        try:
            head = b''
            while b'\r\n\r\n' not in head: head += connection.recv(4096)
            key = next(l.split(b': ')[1] for l in head.split(b'\r\n') if l.lower().startswith(b'sec-websocket-key'))
            accept = base64.b64encode(hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest())
            connection.sendall(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ' + accept + b'\r\n\r\n')
            answers['pinging_upstream']['connected'] += 1
            while not over.is_set(): connection.sendall((b'\x89\x7d' + b'p' * 125) * 200)
        except OSError: pass
    while not over.is_set():
        try: connection, _ = listener.accept()
        except OSError: return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()

def repeat(name, function, pause):
    while not over.is_set():
        try:
            for status in function():
                answers[name][str(status)] += 1
                if over.is_set(): return
        except OSError as error: answers[name][type(error).__name__] += 1
        over.wait(pause)

def main(address, upstream_port, seconds):
    global HOST, PORT
    HOST, PORT = address.rsplit(':', 1)[0], int(address.rsplit(':', 1)[1])
    listener = socket.create_server(('127.0.0.1', upstream_port))
    kinds = os.environ.get('WEIR_KINDS', ','.join([*KINDS, 'pinging_upstream'])).split(',')
    if 'pinging_upstream' in kinds: threading.Thread(target=pinging_upstream, args=(listener,), daemon=True).start()
    threads = [threading.Thread(target=repeat, args=(name, *KINDS[name]), daemon=True) for name in kinds if name != 'pinging_upstream']
    for thread in threads: thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads: thread.join(60)
    print(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)

if __name__ == '__main__': main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
