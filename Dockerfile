# One image for trainer, server and replay, which differ only in their command.
# torch comes from TORCH_INDEX_URL, PyTorch's public index of CPU builds; if that can't be reached, from wherever pip finds it.
FROM python:3.11-slim

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /opt/niwaki

# Dependencies in layers of their own, so that a change of our code installs nothing again. --no-deps: torch's own
# dependencies are pinned in constraints.txt and come with the others, not from the index of torch.
COPY constraints.txt pyproject.toml ./
RUN torch=$(grep '^torch==' constraints.txt) \
    && { python -m pip install --no-deps --timeout 10 --retries 1 --index-url "$TORCH_INDEX_URL" "$torch" \
         || python -m pip install --no-deps "$torch"; } \
    && python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['registry'], sep='\n')" \
       > requirements.txt \
    && python -m pip install -c constraints.txt -r requirements.txt

COPY niwaki niwaki
COPY stream stream
COPY serving serving
COPY model model
COPY pruning pruning
COPY README.md LICENSE ./
RUN python -m pip install --no-deps . && rm -rf build ./*.egg-info

# The volumes of the compose file take their owner from these folders.
RUN useradd --create-home --uid 10001 niwaki \
    && install -d -o niwaki -g niwaki /var/lib/niwaki /recordings
WORKDIR /home/niwaki
USER niwaki

# Compiled once, here; a container on another kind of processor compiles again, once.
ENV NUMBA_CACHE_DIR=/home/niwaki/.cache/niwaki
RUN python -c "import niwaki.stream.training.trainer"

# 9464: the trainer's /metrics; 8080: HTTP scoring and the server's /metrics.
EXPOSE 9464 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["niwaki"]
CMD ["--help"]
