# The service and its operator in a slim image, from pinned packages. Its arguments are those of `tidelog`, its settings TIDELOG_* variables;
# the operator is the command `tidelog-operator` in it:
#
#     docker build -t tidelog .
#     docker run --rm tidelog demo
#     docker run --rm -p 9595:9595 tidelog broker --bucket memory:// --metadata sqlite:// --listen 0.0.0.0:9595 --insecure
#     docker run --rm --entrypoint tidelog-operator tidelog --help
#
# tests/e2e/test_dockerfile.py runs these steps outside Docker.

FROM python:3.13-slim AS build
WORKDIR /src
ENV UV_CONSTRAINT=/src/requirements.txt UV_BUILD_CONSTRAINT=/src/requirements.txt UV_COMPILE_BYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE requirements.txt ./
COPY service ./service
COPY operator ./operator
RUN python -m pip install --quiet uv
RUN python -m venv --without-pip /opt/tidelog && uv pip install --quiet --python /opt/tidelog/bin/python '.[server,operator]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /var/lib/tidelog tidelog && install -d -o 10001 /var/lib/tidelog
COPY --from=build /opt/tidelog /opt/tidelog
ENV PATH=/opt/tidelog/bin:$PATH PYTHONUNBUFFERED=1 TIDELOG_LOG_FORMAT=json
WORKDIR /var/lib/tidelog
USER 10001
EXPOSE 9595 9596
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidelog"]
CMD ["broker"]
