#!/usr/bin/env bash
# botocore raises a bare ValueError, none of its own exceptions, for an answer whose Last-Modified is
# no date. Code that catches BotoCoreError and ClientError around a call still dies of one header.
# Exits with another status than 0 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet boto3==1.43.106 botocore==1.43.106
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import botocore
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


class Store(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Last-Modified", "yesterday")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{server.server_port}",
    region_name="us-east-1",
    aws_access_key_id="k",
    aws_secret_access_key="s",
    config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
)
print("botocore", botocore.__version__)
try:
    client.get_object(Bucket="b", Key="k")
except (BotoCoreError, ClientError) as error:
    sys.exit(f"changed: {type(error).__name__}: {error}")
except ValueError as error:
    print(f"ValueError: {error}")
else:
    sys.exit("changed: the answer was taken")
PYTHON
