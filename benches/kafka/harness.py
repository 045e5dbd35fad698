"""What the scenarios of `crash` are made of: a broker, a data folder between two of its topics, and the recount."""

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
WEIR = pathlib.Path(os.environ.get("WEIR_BIN", HERE.parent.parent / "target/debug/weir")).resolve()
JAVA = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
JAVA += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=off"]
# One answer of a verb or of the broker takes a second or two here; a machine that is busy gets a minute more.
TIMEOUT = 90
CONFIG = """data = "data"
[server]
http = "127.0.0.1:0"
[[sources]]
name = "broker"
type = "kafka"
brokers = ["{brokers}"]
{security}
topics = {{ "{topic}" = "rsvps" }}
group = "{group}"
from = "{start}"
[streams.rsvps]
preset = "rsvps"
[[sinks]]
name = "out"
type = "kafka"
from = "rsvps"
brokers = ["{brokers}"]
{security}
topic = "{topic}.out"
key = "{key}"
"""
# What identifies a row, and what must be in its message.
ROWS = "select lsn, event_id, rsvp_id, mtime, response, guests from rsvps"
RAW = """select "partition", source_offset, arrow_cast(bytes, 'Utf8') as record from raw where kind = 'record'"""


class Failure(Exception):
    """Something is not as promised, or did not happen in time."""


def wait(what, condition, seconds=TIMEOUT):
    """Waits until a condition holds; one that cannot be evaluated yet does not hold."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (OSError, ValueError, LookupError) as error:
            reason = f": {error}"
        else:
            reason = ""
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds} s{reason}")
        time.sleep(0.1)


def free_port():
    """A port that is free, with the next two, which the broker's controller and its clients with passwords take.
    Connections of clients do not begin at ports of this range, so that it stays free while the broker is
    restarted."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack:
            try:
                for each in range(port, port + 3):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
                return port
            except OSError:
                continue


class Broker:
    """A broker with Kafka's own clients, in a temporary folder."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="weir-broker-")
        self.port = free_port()
        self.brokers = f"127.0.0.1:{self.port}"
        self.secured = f"127.0.0.1:{self.port + 2}"
        self.client = None

    def __enter__(self):
        try:
            # It is compiled while the broker starts.
            self.start_client()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.client:
            self.client.kill()
            self.client.wait()
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start_client(self):
        command = [*JAVA, "-cp", f"{self.run('libraries')}/*", HERE / "Client.java", self.brokers]
        # A session of its own: Ctrl-C is for this process, which then ends the others.
        self.client = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def run(*arguments):
        command = [HERE / "broker", *map(str, arguments)]
        # The first run fetches the libraries.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, start_new_session=True)
        if done.returncode != 0:
            raise Failure(f"broker {arguments[0]}: exit code {done.returncode}")
        return done.stdout.strip()

    def start(self):
        self.run("start", self.folder, self.port, self.port + 2)

    def is_listening(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.run("stop", self.folder)

    def kill(self):
        pid = int(pathlib.Path(self.folder, "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait("the broker has ended", lambda: not self.is_listening())

    def password(self):
        return pathlib.Path(self.folder, "password").read_text().strip()

    def other_authority(self):
        """The certificate of an authority that is not the broker's, as a file."""
        store, path = pathlib.Path(self.folder, "other.p12"), pathlib.Path(self.folder, "other.pem")
        options = ["-alias", "other", "-keystore", store, "-storepass", "no secret", "-storetype", "PKCS12"]
        for command in (["-genkeypair", "-keyalg", "RSA", "-dname", "CN=other"], ["-exportcert", "-rfc", "-file", path]):
            if command[0] != "-genkeypair" or not store.exists():
                subprocess.run(["keytool", *command, *options], check=True, capture_output=True, timeout=TIMEOUT)
        return path

    def ask(self, *words):
        """Lines that `Client.java` answers to a command."""
        if self.client.poll() is not None:
            self.start_client()
        watchdog = threading.Timer(TIMEOUT, self.client.kill)
        watchdog.start()
        try:
            print(*words, sep="\t", file=self.client.stdin, flush=True)
            lines = []
            for line in self.client.stdout:
                word, _, reason = line.rstrip("\n").partition("\t")
                if word == "ok":
                    return lines
                if word == "error":
                    raise Failure(f"the broker's client: {' '.join(map(str, words))}: {reason}")
                lines.append(line.rstrip("\n"))
        except BrokenPipeError:
            pass
        finally:
            watchdog.cancel()
        raise Failure(f"the broker's client did not answer: {' '.join(map(str, words))}")

    def read(self, topic):
        """Messages that a reader of committed ones gets: keys and rows."""
        messages = (line.split("\t", 3) for line in self.ask("read", topic))
        return [(key, json.loads(value)) for _, _, key, value in messages]

    def lags(self, group):
        """Lag of each partition, by kafka-consumer-groups."""
        rows = (line.split() for line in self.ask("group", group))
        return {f"{row[1]}/{row[2]}": int(row[5]) for row in rows if row[:1] == [group] and row[5].isdigit()}


class Case:
    """A data folder whose source reads a topic, and whose sink writes the rows to another one."""

    def __init__(self, broker, topic, seed, records):
        self.broker, self.topic, self.group = broker, topic, topic
        self.chance = random.Random(seed)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-crash-"))
        self.process = None
        self.partitions = 3
        self.seed, self.records = seed, records
        # What is left to send, and what was committed to the topic.
        self.input, self.sent = [], []

    def prepare(self):
        """Generates the input, and creates the topics."""
        if not self.broker.is_listening():
            # It was to be restarted where an earlier scenario failed.
            self.broker.start()
        self.run("generate", "--count", str(self.records), "--seed", str(self.seed), "--file", "input")
        self.input = (self.folder / "input").read_text().splitlines()
        self.broker.ask("create", self.topic, self.partitions, f"{self.topic}.out", 3)
        self.configure()

    def configure(self, brokers=None, security=None, key="event_id", start="earliest"):
        security = f"security = {{ {security} }}" if security else ""
        brokers = brokers or self.broker.brokers
        text = CONFIG.format(
            brokers=brokers, topic=self.topic, group=self.group, security=security, key=key, start=start
        )
        (self.folder / "weir.toml").write_text(text)

    def secure(self, mechanism, password=None, ca_file=None):
        """From now on with TLS and a password: by default the right one, and the broker's authority."""
        path = self.folder / "password"
        path.touch(0o600)
        path.write_text(f"{password or self.broker.password()}\n")
        security = f'protocol = "sasl_ssl", mechanism = "{mechanism}", user = "weir", password_file = "password"'
        ca_file = ca_file or f"{self.broker.folder}/ca.pem"
        self.configure(self.broker.secured, f'{security}, ca_file = "{ca_file}"')

    def another(self, copied):
        """A second folder with the same topics: a new one, or a copy of this one with its log."""
        other = object.__new__(Case)
        other.__dict__.update(self.__dict__)
        other.folder, other.process = self.folder / "other", None
        other.folder.mkdir()
        if copied:
            shutil.copytree(self.folder / "data", other.folder / "data")
        other.configure()
        return other

    def close(self, is_folder_kept=False):
        self.kill()
        if not is_folder_kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        # A campaign has hundreds of topics, and a broker that is restarted opens all.
        for topic in (self.topic, f"{self.topic}.out"):
            with contextlib.suppress(Failure):
                self.broker.ask("delete", topic)

    def log(self):
        """The end of what the processes of this folder, and of the other one in it, reported."""
        paths = sorted(self.folder.glob("**/weir.log"))
        return [line for path in paths for line in (f"{path}:", *path.read_text().splitlines()[-12:])]

    # The topic.

    def take(self, share):
        """Takes a share of the input that is left."""
        count = max(1, int(share * len(self.input)))
        lines, self.input = self.input[:count], self.input[count:]
        return lines

    def send(self, share, is_transactional=False):
        self.send_lines(self.take(share), is_transactional)

    def send_lines(self, lines, is_transactional=False):
        """Sends records by Kafka's own producer."""
        if is_transactional:
            script = self.transactions(lines)
        else:
            script = [f"send\t-\t{keyed(line)}" for line in lines]
            self.sent += lines
        path = self.folder / "script"
        path.write_text("".join(f"{line}\n" for line in script))
        self.broker.ask("send", self.topic, path)

    @contextlib.contextmanager
    def sending(self, share, is_transactional=False):
        """Sends a share of the input piece by piece, within seconds, while something else happens."""
        lines, failures = self.take(share), []
        size = max(1, len(lines) // 20)
        pieces = [lines[at : at + size] for at in range(0, len(lines), size)]

        def send():
            try:
                for piece in pieces:
                    self.send_lines(piece, is_transactional)
            except Failure as failure:
                failures.append(failure)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if failures:
            raise failures[0]

    def transactions(self, lines):
        """Transactions of two producers, which overlap, and of which a part is aborted."""
        script, open_lines = [], {"a": [], "b": []}

        def end(name):
            verdict = self.chance.choice(["abort", "commit", "commit"])
            if verdict == "commit":
                self.sent += open_lines[name]
            if open_lines[name]:
                script.append(f"{verdict}\t{name}")
            open_lines[name] = []

        for line in lines:
            name = self.chance.choice("ab")
            script.append(f"send\t{name}\t{keyed(line)}")
            open_lines[name].append(line)
            if self.chance.random() < 0.02:
                end(name)
        end("a")
        end("b")
        return script

    # Processes.

    def run(self, *arguments, code=0):
        """A verb, to its end; what it has written to stdout."""
        name = f"weir {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [WEIR, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=2 * TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{name}: has not ended within {error.timeout} s") from None
        if done.returncode != code:
            raise Failure(f"{name}: exit code {done.returncode}, not {code}: {done.stderr[-1000:]}")
        return done.stdout

    def start(self, *arguments):
        with open(self.folder / "weir.log", "a", encoding="utf-8") as log:
            command = [WEIR, "run", *arguments]
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self):
        """Ends the server as systemd does."""
        self.process.terminate()
        code = self.process.wait(TIMEOUT)
        self.process = None
        if code != 0:
            raise Failure(f"weir run: exit code {code} after SIGTERM")

    # Questions to the running server.

    def get(self, path, body=None):
        address = json.loads((self.folder / "data/address.json").read_text())
        if address["pid"] != self.process.pid:
            raise ValueError("the server has not started yet")
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address['http']}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.read().decode()

    def sql(self, query):
        """Rows of the running server, or of the folder."""
        if self.process:
            return json.loads(self.get("api/v1/sql", json.dumps({"sql": query}).encode()))["rows"]
        return json.loads(self.run("sql", query, "--output", "json"))["rows"]

    def rows(self):
        return self.sql("select count(*) as n from rsvps")[0]["n"]

    def sink(self):
        return self.sql("select state, lag, last_error from weir.sinks")[0]

    def complete(self, path):
        """An answer that includes every record of the log: each view is as far as its answer states."""
        answer = None

        def is_complete():
            nonlocal answer
            answer = json.loads(self.get(path))
            return answer["as_of"]["pending"] == 0

        self.wait(f"{path} includes everything", is_complete)
        return answer

    def reasons(self):
        """Why source and sink wait, as status says it."""
        status = json.loads(self.get("api/v1/status"))
        return status["sources"][0]["reason"], status["sinks"][0]["last_error"]

    def wait(self, what, condition, seconds=TIMEOUT):
        def holds():
            if self.process and self.process.poll() is not None:
                raise Failure(f"{what}: weir has ended with exit code {self.process.returncode}")
            return condition()

        wait(what, holds, seconds)

    def wait_for_progress(self):
        """Until records arrive: whatever happens next, happens in mid-flight."""
        before = None

        def has_moved():
            nonlocal before
            now = self.rows()
            before = now if before is None else before
            return now > before or 0 < now == len(self.sent)

        self.wait("records arrive", has_moved)

    def wait_for_everything(self, with_sink=True):
        seen = None

        def is_there():
            nonlocal seen
            seen = self.rows(), self.sink()
            return seen[0] >= len(self.sent) and (not with_sink or seen[1]["lag"] == 0)

        try:
            self.wait("every record is in the lake and was sent on", is_there)
        except Failure as failure:
            raise Failure(f"{failure}; rows and sink: {seen}, of {len(self.sent)} records") from None

    def lags(self):
        """Lag of each partition, by Weir's metrics."""
        found = re.findall(r'weir_source_lag_records\{([^}]*)\} (\d+)', self.get("metrics"))
        return {re.search(r'partition="([^"]*)"', labels)[1]: int(lag) for labels, lag in found}

    def lag_difference(self, *others):
        """How the lag that this and other members show differs from the broker's once everything was read, where both
        are 0 within seconds; none if it does not."""
        found = ()

        def is_nothing_left():
            nonlocal found
            by_weir, by_broker = [member.lags() for member in (self, *others)], self.broker.lags(self.group)
            found = by_weir, by_broker
            is_any_left = any(any(lags.values()) for lags in (*by_weir, by_broker))
            # A member shows its own partitions.
            return not is_any_left and len(by_broker) == self.partitions and by_broker.keys() == set().union(*by_weir)

        try:
            self.wait("lag", is_nothing_left, 20)
        except Failure:
            return f"by /metrics {found[0]}, by the broker {found[1]}"


def keyed(line):
    """A message: the event's id, and the record."""
    return f"{json.loads(line)['event']['event_id']}\t{line}"


def content(row):
    """What of a record must be in its row, too; ids alone are repeated in the input."""
    return (row["rsvp_id"], row["mtime"], row["response"], row["guests"])


def require(what, found, expected):
    """Compares two collections with repetitions, or two numbers."""
    if found == expected:
        return
    if isinstance(expected, collections.Counter):
        lost, surplus = expected - found, found - expected
        examples = [*lost][:2], [*surplus][:2]
        raise Failure(f"{what}: {lost.total()} lost, {surplus.total()} doubled or foreign, for example {examples}")
    raise Failure(f"{what}: {found}, not {expected}")


def recount(case):
    """Compares everything that a stopped folder and its output topic have with what was sent."""
    lake = recount_folder(case)
    sent = recount_topic(case, lake)
    return f"{len(lake)} records = raw = lake = counts = search = {sent} messages"


def recount_folder(case, has_one_history=True):
    """Compares what a stopped folder has with what was sent; returns its rows. A topic that was created again
    has offsets twice."""
    records = [json.loads(line) for line in case.sent]
    # Another process: what is on the disk counts, not what one had in memory.
    case.start()
    case.wait_for_everything(with_sink=False)
    raw = case.sql(RAW)
    require("raw", collections.Counter(row["record"] for row in raw), collections.Counter(case.sent))
    if has_one_history:
        offsets = {(row["partition"], row["source_offset"]) for row in raw}
        require("partitions and offsets in raw", len(offsets), len(records))
    lake = case.sql(ROWS)
    require("lake", collections.Counter(map(content, lake)), collections.Counter(map(content, records)))
    require("LSNs of the lake", len({row["lsn"] for row in lake}), len(records))
    require("dead letters", case.sql("select count(*) as n from dead_letters")[0]["n"], 0)
    counts = case.complete("api/v1/count?by=response&duplicates=true")["groups"]
    counts = collections.Counter({group["response"]: group["count"] for group in counts})
    require("counts", counts, collections.Counter(record["response"] for record in records))
    # The country and the event that most records have.
    for field, values in (
        ("country", (record["group"]["group_country"] for record in records)),
        ("event_id", (record["event"]["event_id"] for record in records)),
    ):
        [(term, expected)] = collections.Counter(values).most_common(1)
        found = case.complete(f"api/v1/search?q={field}:{term}&limit=1")["total"]
        require(f"search for {field}:{term}", found, expected)
    case.kill()
    return lake


def recount_topic(case, *lakes):
    """Compares the output topic with the rows of the folder that sent them; of two folders, each message must be
    a row of one. Returns the number of messages."""
    found = collections.Counter((row["lsn"], key, *content(row)) for key, row in case.broker.read(f"{case.topic}.out"))
    lsns = collections.Counter(message[0] for message in found.elements())
    require("LSNs that the topic has twice", sum(n - 1 for n in lsns.values()), 0)
    rows = [collections.Counter((row["lsn"], row["event_id"], *content(row)) for row in lake) for lake in lakes]
    if len(rows) == 1:
        require("topic", found, rows[0])
    else:
        require("messages that are no row", sum((found - rows[0] - rows[1]).values()), 0)
    return found.total()
