"""What the store promises: whole checkpoints, newest last, whoever publishes and whatever breaks on the way."""

import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import msgspec
import pytest
import redis
from redis_server import RedisServer, binaries

from model.checkpoint import CheckpointError
from serving.errors import StoreRefused, StoreUnavailable
from serving.store import CheckpointStore, StoreConfig, address
from stream.local import free_port


@pytest.fixture(scope="module", params=list(binaries().items()), ids=lambda item: f"redis-{item[0]}")
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(binary=request.param[1]) as server:
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., RedisServer]]:
    """Starts a server of one's own, with any options."""
    servers: list[RedisServer] = []

    def factory(*options: str, **arguments) -> RedisServer:
        servers.append(RedisServer(*options, **arguments))
        return servers[-1]

    yield factory
    for server in servers:
        server.kill()


@pytest.fixture
def store(server: RedisServer) -> Iterator[CheckpointStore]:
    """A model of its own in a shared server."""
    with CheckpointStore.from_url(server.url, f"model-{secrets.token_hex(4)}") as store:
        yield store


def header(version: int, base: int = 0) -> SimpleNamespace:
    """All that the store reads of a checkpoint's header."""
    return SimpleNamespace(version=version, parent=version - 1, base=base, created_s=1_700_000_000.0 + version)


def blob(version: int, size: int = 1000) -> bytes:
    return version.to_bytes(8, "big") * (size // 8)


def keys(store: CheckpointStore) -> list[str]:
    with redis.Redis.from_url(store.config.url) as client:
        return sorted(key.decode() for key in client.scan_iter(f"niwaki:{{{store.name}}}:*"))


def with_config(store: CheckpointStore, **changes) -> CheckpointStore:
    return CheckpointStore(msgspec.structs.replace(store.config, **changes))


def test_before_the_first_checkpoint_there_is_nothing(store):
    assert store.head() is None
    assert store.fetch() is None
    assert store.versions() == []


def test_what_was_published_is_fetched_byte_for_byte(store):
    data = secrets.token_bytes(100_001)
    assert store.publish(header(7), data)
    assert store.fetch() == data
    pointer = store.head()
    assert (pointer.version, pointer.kind, pointer.base, pointer.bytes) == (7, "full", 7, 100_001)
    assert pointer.created_s == 1_700_000_007.0


def test_a_blob_longer_than_a_chunk_is_cut_and_joined(store):
    data = secrets.token_bytes(1001)
    with with_config(store, chunk_bytes=100) as small:
        assert small.publish(header(1), data)
    assert store.head().chunks == 11
    assert store.fetch() == data


def test_a_blob_over_64_mb_survives_the_way(store):
    data = secrets.token_bytes(2**20) * 70
    assert store.publish(header(1), data)
    assert store.head().chunks == 2
    assert store.fetch() == data


@pytest.mark.parametrize("late", [1, 4, 5])
def test_a_version_that_is_not_greater_is_refused_and_leaves_no_trace(store, late):
    assert store.publish(header(5), blob(5))
    before = keys(store)
    assert not store.publish(header(late), blob(99))
    assert store.fetch() == blob(5)
    assert keys(store) == before


@pytest.mark.parametrize("version", [0, -1, 2**53])
def test_a_version_that_can_not_be_ordered_is_a_mistake(store, version):
    with pytest.raises(ValueError, match="version must be in 1 .."):
        store.publish(header(version), b"x")


def test_great_versions_keep_their_order(store):
    for version in (2**53 - 2, 2**53 - 1):
        assert store.publish(header(version), blob(1))
    assert [pointer.version for pointer in store.versions()] == [2**53 - 2, 2**53 - 1]


def test_the_last_k_are_kept_and_older_bytes_are_gone(store):
    pointers = []
    with with_config(store, keep_versions=3, chunk_bytes=400) as three:
        for version in range(1, 8):
            assert three.publish(header(version), blob(version))
            pointers.append(three.head())
    assert store.versions() == pointers[-3:]
    assert [store.fetch(pointer) for pointer in pointers[-4:]] == [None, blob(5), blob(6), blob(7)]
    assert len(keys(store)) == 2 + 3 * 3


def test_a_delta_keeps_the_full_checkpoint_that_it_needs(store):
    with with_config(store, keep_versions=2) as two:
        two.publish(header(1), blob(1))
        for version in range(2, 7):
            two.publish(header(version, base=1), blob(version))
        assert [pointer.version for pointer in two.versions()] == [1, 2, 3, 4, 5, 6]
        assert (two.head().kind, two.head().base) == ("delta", 1)
        for version in (7, 8):
            two.publish(header(version), blob(version))
        assert [pointer.version for pointer in two.versions()] == [7, 8]


def test_a_path_leads_from_what_is_held_or_from_the_last_full_checkpoint(store):
    for version in range(1, 6):
        assert store.publish(header(version, base=0 if version in (1, 3) else 1 if version < 3 else 3), blob(version))
    one, _, three, four, five = store.versions()
    assert store.path(five) == [three, four, five]
    assert store.path(five, held=four.upload) == [five]
    assert store.path(five, held=three.upload) == [four, five]
    assert store.path(five, held=one.upload) == [three, four, five]
    assert store.path(three, held=one.upload) == [three]


@pytest.mark.parametrize("between", ["rival", "restart", "emptied"])
def test_a_delta_is_taken_only_right_after_what_it_changes(store, between):
    assert store.publish(header(1), blob(1)) and store.publish(header(2, base=1), blob(2))
    publisher = store
    if between == "rival":
        with with_config(store) as rival:
            assert rival.publish(header(3), blob(3))
        late = header(4, base=1)
        late.parent = 2
    elif between == "restart":
        publisher, late = with_config(store), header(3, base=1)
    else:
        late = header(3, base=1)
        with redis.Redis.from_url(store.config.url) as client:
            client.delete(*keys(store))
    before = keys(store)
    assert not publisher.publish(late, blob(late.version))
    assert keys(store) == before
    assert publisher.publish(header(9), blob(9)) and publisher.publish(header(10, base=9), blob(10))
    if publisher is not store:
        publisher.close()


def test_deleting_the_pointer_by_hand_lets_a_fresh_trainer_begin_again(store):
    for version in (1, 50, 51):
        store.publish(header(version), blob(version))
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(f"niwaki:{{{store.name}}}:pointer")
    assert store.publish(header(1), b"anew")
    assert store.fetch() == b"anew"
    assert [pointer.version for pointer in store.versions()] == [1]
    assert len(keys(store)) == 3


def test_models_under_other_names_do_not_meet(store):
    with with_config(store, name=store.name + ".b") as other:
        store.publish(header(5), blob(5))
        other.publish(header(1), blob(1))
        assert (store.fetch(), other.fetch()) == (blob(5), blob(1))


def test_a_subscriber_is_told_and_finds_the_whole_checkpoint_at_once(store):
    with store.watch() as watch:
        assert not watch.wait(0.0)
        for version in range(1, 20):
            store.publish(header(version), blob(version))
            assert watch.wait(5.0)
            assert store.fetch() == blob(version)


def test_a_reader_never_sees_a_pointer_without_its_bytes_nor_versions_going_back(store):
    """Only one version is kept, so that every publication takes the bytes from under a reader's feet."""
    last, seen = 400, []

    def read() -> int:
        versions = [0]
        while versions[-1] < last:
            data = store.fetch()
            if data is not None:
                assert data == data[:8] * 125
                versions.append(int.from_bytes(data[:8], "big"))
        assert versions == sorted(versions)
        return len(set(versions))

    with ThreadPoolExecutor(2) as pool, with_config(store, keep_versions=1, chunk_bytes=300) as one:
        readers = [pool.submit(read) for _ in range(2)]
        for version in range(1, last + 1):
            assert one.publish(header(version), blob(version))
        seen = [reader.result(timeout=30) for reader in readers]
    assert min(seen) > 2


def test_rival_trainers_never_turn_the_pointer_back(store):
    def publish(versions: range) -> list[int]:
        return [version for version in versions if store.publish(header(version), blob(version))]

    told = []
    with store.watch() as watch, ThreadPoolExecutor(3) as pool:
        rivals = [pool.submit(publish, range(start, 300, 3)) for start in (1, 2, 3)]
        published = sorted(version for rival in rivals for version in rival.result())
        while watch.wait(0.2):
            told.append(store.head().version)
    assert published[-1] == store.head().version == 299
    assert len(set(published)) == len(published) == len(told)
    assert store.fetch() == blob(299)
    assert len(keys(store)) == 2 + store.config.keep_versions


class CuttingProxy:
    """Between a client and Redis; cuts the connection before or after Redis hears of the next swap."""

    def __init__(self, port: int):
        self.upstream, self.cut, self.cuts_left = port, "", 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.upstream)) as redis_side:
            while request := client.recv(2**20):
                swap = b"EVAL" in request and self.cuts_left > 0
                self.cuts_left -= swap
                if swap and self.cut == "before":
                    return
                redis_side.sendall(request)
                answer = redis_side.recv(2**20)
                if swap:
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def cutting(store: CheckpointStore, server: RedisServer) -> Iterator[tuple[CuttingProxy, CheckpointStore]]:
    proxy = CuttingProxy(server.port)
    with with_config(store, url=f"redis://127.0.0.1:{proxy.port}/0") as through:
        yield proxy, through
    proxy.close()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_lost_around_the_swap_is_tried_again_and_publishes_once(store, cutting, cut):
    proxy, through = cutting
    store.publish(header(1), blob(1))
    proxy.cut, proxy.cuts_left = cut, 1
    assert through.publish(header(2), blob(2))
    assert proxy.cuts_left == 0
    assert store.fetch() == blob(2)
    assert len(keys(store)) == 2 + 2


def test_a_writer_that_dies_before_the_swap_changes_nothing_and_its_bytes_expire(store, cutting):
    proxy, through = cutting
    store.publish(header(1), blob(1))
    proxy.cut, proxy.cuts_left = "before", 1000
    with pytest.raises(StoreUnavailable):
        through.publish(header(2), blob(2))
    assert store.fetch() == blob(1)
    with redis.Redis.from_url(store.config.url) as client:
        lifetimes = [client.ttl(key) for key in keys(store)]
    assert sorted(lifetimes)[:3] == [-1, -1, -1] and 0 < max(lifetimes) <= 900


def test_bytes_lost_before_the_swap_are_noticed(store, server):
    """As an eviction would take them."""
    chunk = f"niwaki:{{{store.name}}}:blob:*:0"
    with redis.Redis.from_url(server.url) as client:
        thief = threading.Event()

        def steal() -> None:
            while not thief.is_set():
                for key in client.scan_iter(chunk):
                    if client.ttl(key) > 0:
                        client.delete(key)

        thread = threading.Thread(target=steal)
        thread.start()
        try:
            lost = pytest.raises(StoreUnavailable, match="before it was whole")
            with with_config(store, chunk_bytes=10) as slow, lost:
                slow.publish(header(1), blob(1, 8000))
        finally:
            thief.set()
            thread.join()
    assert store.head() is None and keys(store) == []


def test_bytes_lost_after_the_swap_are_a_checkpoint_that_can_not_be_trusted(store):
    store.publish(header(1), blob(1))
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(f"niwaki:{{{store.name}}}:blob:{store.head().upload}:0")
    for pointer in (None, store.head()):
        with pytest.raises(CheckpointError, match="version 1 are missing"):
            store.fetch(pointer)


def test_an_outage_is_worth_trying_again_and_publication_goes_on_after_it(start):
    server = start()
    with CheckpointStore(StoreConfig(url=server.url, timeout_s=0.5)) as store:
        assert store.publish(header(1), blob(1))
        server.kill()
        for call in (store.head, store.fetch, store.versions, lambda: store.publish(header(2), blob(2))):
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}"):
                call()
        with pytest.raises(StoreUnavailable), store.watch():
            pass
        server.start()
        assert store.publish(header(3), blob(3)) and store.fetch() == blob(3)


def test_a_full_redis_is_worth_trying_again_and_keeps_what_it_has(start):
    server = start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with CheckpointStore.from_url(server.url) as store:
        assert store.publish(header(1), blob(1))
        with pytest.raises(StoreUnavailable):
            for version in range(2, 40):
                store.publish(header(version), blob(version, 500_000))
        assert store.fetch() == blob(store.head().version, store.head().bytes)


def test_a_wrong_password_is_not_worth_trying_again_and_is_never_shown(start):
    server = start("--requirepass", "s3cret")
    for url in (server.url, f"redis://:wr0ng@127.0.0.1:{server.port}/0"):
        with CheckpointStore.from_url(url) as store, pytest.raises(StoreRefused) as caught:
            store.head()
        assert "wr0ng" not in str(caught.value)
    with CheckpointStore.from_url(f"redis://:s3cret@127.0.0.1:{server.port}/0") as store:
        assert store.publish(header(1), blob(1))


def test_users_need_no_more_than_the_documented_rights(start):
    server = start()
    scope = ["resetkeys", "resetchannels", "~niwaki:{ads}:*", "&niwaki:{ads}:*", "+ping"]
    trainer = "+eval +get +set +unlink +strlen +persist +hset +hdel +hvals +publish"
    scorer = "+get +mget +hget +hvals +subscribe +unsubscribe"
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "trainer", "on", ">t", *scope, *trainer.split())
        client.execute_command("ACL", "SETUSER", "scorer", "on", ">s", *scope, *scorer.split())
    as_trainer = CheckpointStore.from_url(f"redis://trainer:t@127.0.0.1:{server.port}", "ads")
    as_scorer = CheckpointStore.from_url(f"redis://scorer:s@127.0.0.1:{server.port}", "ads")
    other = CheckpointStore.from_url(f"redis://trainer:t@127.0.0.1:{server.port}", "other")
    with as_trainer, as_scorer, other:
        with as_scorer.watch() as watch:
            for version in range(1, 9):
                assert as_trainer.publish(header(version), blob(version))
                assert watch.wait(5.0)
                assert as_scorer.fetch() == as_scorer.fetch(as_scorer.head()) == blob(version)
        with pytest.raises(StoreRefused):
            as_scorer.publish(header(9), blob(9))
        with pytest.raises(StoreRefused):
            other.publish(header(1), blob(1))


def test_a_key_of_somebody_else_is_left_alone(store):
    with redis.Redis.from_url(store.config.url) as client:
        pointer = f"niwaki:{{{store.name}}}:pointer"
        for value in (b"not json", b'{"version": "x"}', b"[]"):
            client.set(pointer, value)
            with pytest.raises(StoreRefused):
                store.head()
            with pytest.raises(StoreRefused):
                store.publish(header(1), blob(1))
            assert client.get(pointer) == value
        client.delete(pointer)
        client.lpush(pointer, "x")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.publish(header(1), blob(1))
        client.delete(pointer)


def test_a_unix_socket_will_do(start, tmp_path):
    start("--unixsocket", str(tmp_path / "redis.sock"))
    with CheckpointStore.from_url(f"unix://{tmp_path}/redis.sock?db=3") as store:
        assert store.publish(header(1), blob(1)) and store.fetch() == blob(1)


def test_tls_will_do(start, tmp_path):
    certificate, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not on the PATH")
    port = free_port()
    try:
        tls = [
            "--tls-port",
            str(port),
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            key,
            "--tls-auth-clients",
            "no",
        ]
        start(*tls)
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {str(error).splitlines()[-1]}")
    with CheckpointStore.from_url(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as store:
        assert store.publish(header(1), blob(1)) and store.fetch() == blob(1)
    with CheckpointStore.from_url(f"rediss://127.0.0.1:{port}/0") as suspicious, pytest.raises(StoreUnavailable):
        suspicious.head()


def test_sentinel_leads_to_the_new_primary_after_a_failover(start, tmp_path):
    primary = start("--repl-diskless-sync-delay", "0")
    replica = start("--replicaof", "127.0.0.1", str(primary.port))
    file = tmp_path / "sentinel.conf"
    file.write_text(
        f"sentinel monitor ads 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds ads 300\nsentinel failover-timeout ads 2000\n"
    )
    port = start(str(file), "--sentinel").port
    with CheckpointStore(StoreConfig(url=f"redis+sentinel://127.0.0.1:{port}/ads/0", timeout_s=2.0)) as store:
        assert store.publish(header(1), blob(1))
        with redis.Redis.from_url(primary.url) as client:
            assert client.wait(1, 4000) == 1
        primary.kill()
        published, attempts = False, 0
        while not published:
            attempts += 1
            assert attempts < 100
            try:
                published = store.publish(header(2), blob(2))
            except StoreUnavailable:
                continue
        assert store.fetch() == blob(2)
        with CheckpointStore.from_url(replica.url) as there:
            assert there.head().version == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:pw@cache:6379/2", "redis://cache:6379/2"),
        ("rediss://:pw@[::1]:6380?ssl_cert_reqs=none", "rediss://[::1]:6380"),
        ("unix:///run/redis.sock?password=pw", "unix:///run/redis.sock"),
        ("redis+sentinel://ann:pw@a:26379,b:26379/ads/1", "redis+sentinel://a:26379,b:26379/ads/1"),
    ],
)
def test_an_address_shows_no_credentials(url, shown):
    assert address(url) == shown


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"url": "http://cache"}, "redis.url must begin with"),
        ({"url": "redis://ann:p/w@cache:6379"}, "special characters in a password"),
        ({"url": "redis+sentinel://a:26379"}, "must end with /service"),
        ({"name": "a b"}, "redis.name must be"),
        ({"name": "{a}"}, "redis.name must be"),
        ({"keep_versions": 0}, "redis.keep_versions must be at least 1"),
        ({"chunk_bytes": 0}, "redis.chunk_bytes must be in 1"),
        ({"timeout_s": 0.0}, "redis.timeout_s must be greater than 0"),
        ({"poll_interval_s": -1.0}, "redis.poll_interval_s must be greater than 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        StoreConfig(**wrong)


def test_an_option_that_the_client_does_not_know_is_named():
    with pytest.raises(ValueError, match="redis.url is not understood.*colour"):
        CheckpointStore.from_url("redis://127.0.0.1/0?colour=red")
