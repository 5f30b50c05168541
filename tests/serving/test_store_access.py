"""How a store is reached: passwords, rights, sockets, TLS, Sentinel, and what a wrong setting is
told."""

import subprocess
import time

import pytest
import redis

from niwaki.serving.errors import StoreRefused, StoreUnavailable
from niwaki.serving.store import CheckpointStore, StoreConfig, address
from niwaki.stream.offline.local import free_port
from tests.support.redis_server import RedisServer
from tests.support.stored import blob, header


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


def test_a_unix_socket_will_do(start, tmp_path):
    start("--unixsocket", str(tmp_path / "redis.sock"))
    with CheckpointStore.from_url(f"unix://{tmp_path}/redis.sock?db=3") as store:
        assert store.publish(header(1), blob(1)) and store.fetch() == blob(1)


def test_tls_will_do(start, tmp_path):
    certificate, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    make += " -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(
            [*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
        )
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
    with CheckpointStore.from_url(
        f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    ) as store:
        assert store.publish(header(1), blob(1)) and store.fetch() == blob(1)
    with (
        CheckpointStore.from_url(f"rediss://127.0.0.1:{port}/0") as suspicious,
        pytest.raises(StoreUnavailable),
    ):
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
    with CheckpointStore(
        StoreConfig(url=f"redis+sentinel://127.0.0.1:{port}/ads/0", timeout_s=2.0)
    ) as store:
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


@pytest.fixture
def cluster(start) -> list[RedisServer]:
    """Two nodes that share the slots, and know each other."""
    buses = [free_port() for _ in range(2)]
    nodes = [
        start("--cluster-enabled", "yes", "--cluster-port", str(bus), "--save", "") for bus in buses
    ]
    first, second = (redis.Redis.from_url(node.url) for node in nodes)
    with first, second:
        for client, slots in ((first, (0, 8191)), (second, (8192, 16383))):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
        first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, buses[1])
        deadline_s = time.monotonic() + 60
        while not all(
            client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
            for client in (first, second)
        ):
            assert time.monotonic() < deadline_s, "the nodes did not meet"
    return nodes


def test_a_cluster_finds_the_node_that_has_the_model_whichever_node_is_asked(cluster):
    first, second = (redis.Redis.from_url(node.url) for node in cluster)
    with first, second:
        homes = set()
        for name in ("ads", "news"):
            with CheckpointStore.from_url(
                f"redis+cluster://127.0.0.1:{cluster[0].port}", name
            ) as store:
                config = StoreConfig(
                    url=f"redis+cluster://127.0.0.1:{cluster[1].port}", name=name, chunk_bytes=100
                )
                with CheckpointStore(config) as other, other.watch() as watch:
                    assert store.head() is None
                    for version in range(1, 9):
                        assert store.publish(header(version), blob(version)) and watch.wait(5.0)
                        assert other.fetch() == blob(version)
                    assert other.publish(header(9), blob(9)) and other.head().chunks > 1
                    assert not store.publish(header(9), blob(9)) and store.fetch() == blob(9)
            homes |= {place for place, client in enumerate((first, second)) if client.dbsize()}
        assert homes == {0, 1}


def refused_as_a_node(url: str) -> str:
    """What the store says of a node of a cluster behind a URL that names no cluster."""
    with CheckpointStore.from_url(url) as store, pytest.raises(StoreRefused) as caught:
        store.head()
    return str(caught.value)


def test_a_node_of_a_cluster_behind_a_plain_url_says_which_url_to_write(cluster):
    for do in (CheckpointStore.head, lambda store: store.publish(header(1), blob(1))):
        told = []
        for node in cluster:  # one of them has the slot of the model
            with CheckpointStore.from_url(node.url, "ads") as store:
                try:
                    do(store)
                except StoreRefused as error:
                    told.append((node.port, str(error)))
        ((port, text),) = told
        assert text == (
            f"redis://127.0.0.1:{port}/0: is a node of a Redis Cluster,"
            f" so redis.url must be redis+cluster://127.0.0.1:{port}"
        )


def test_a_node_of_a_cluster_that_is_not_yet_whole_or_asked_for_a_database_says_so_too(start):
    node = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--save", "")
    place = f"127.0.0.1:{node.port}"
    written = f"redis.url must be redis+cluster://{place}"
    for database in (0, 1):
        assert refused_as_a_node(f"redis://{place}/{database}").endswith(written)
    with redis.Redis.from_url(node.url) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">s3cret", "~*", "&*", "+@all")
    text = refused_as_a_node(f"redis://ann:s3cret@{place}/0")
    assert text.endswith(written) and "s3cret" not in text


def test_a_replica_whose_primary_is_gone_is_no_node_of_a_cluster_and_may_come_back(start):
    replica = start(
        "--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "no"
    )
    with CheckpointStore.from_url(replica.url) as store, pytest.raises(StoreUnavailable):
        store.head()


def test_a_cluster_that_does_not_answer_may_come_back():
    with (
        CheckpointStore.from_url(f"redis+cluster://127.0.0.1:{free_port()}") as store,
        pytest.raises(StoreUnavailable),
    ):
        store.head()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:pw@cache:6379/2", "redis://cache:6379/2"),
        ("rediss://:pw@[::1]:6380?ssl_cert_reqs=none", "rediss://[::1]:6380"),
        ("unix:///run/redis.sock?password=pw", "unix:///run/redis.sock"),
        ("redis+cluster://ann:pw@a:6379", "redis+cluster://a:6379"),
        ("redis+sentinel://ann:pw@a:26379,b:26379/ads/1", "redis+sentinel://a:26379,b:26379/ads/1"),
    ],
)
def test_an_address_shows_no_credentials(url, shown):
    assert address(url) == shown


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"url": "http://cache"}, "url: must begin with"),
        ({"url": "redis://ann:p/w@cache:6379"}, "special characters in a password"),
        ({"url": "redis+sentinel://a:26379"}, "must end with /service"),
        ({"name": "a b"}, "name: must be"),
        ({"name": "{a}"}, "name: must be"),
        ({"keep_versions": 0}, "keep_versions: must be at least 1"),
        ({"chunk_bytes": 0}, "chunk_bytes: must be in 1"),
        ({"timeout_s": 0.0}, "timeout_s: must be greater than 0"),
        ({"poll_interval_s": -1.0}, "poll_interval_s: must be greater than 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        StoreConfig(**wrong)


def test_an_option_that_the_client_does_not_know_is_named():
    with pytest.raises(ValueError, match="url: must be understood.*colour"):
        CheckpointStore.from_url("redis://127.0.0.1/0?colour=red")
