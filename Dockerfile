# docker build -t moai . && docker run -p 8000:8000 -e MOAI_API_KEY=... moai
# Another model: docker run -v /models:/models moai /models/moai-7b --allow-host NAME
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:3.12-slim
COPY --from=build /wheels /wheels
COPY constraints/locked.txt /wheels/
RUN pip install --no-cache-dir --constraint /wheels/locked.txt "$(echo /wheels/*.whl)[ocr,segmentation,serve]" \
    && useradd --create-home moai
USER moai
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
EXPOSE 8000
# SIGTERM lets running answers end.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["moai", "serve", "--host", "0.0.0.0"]
CMD ["moai-nano"]
