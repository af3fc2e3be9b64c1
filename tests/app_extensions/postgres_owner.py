"""Run as a script: owns an embedded PostgreSQL on the folder named, until its standard input ends.

Says who it is in one line of JSON as soon as the server answers.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from app_extensions.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError


async def main(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    try:
        await server.open()
    except EmbeddedPostgresError as exc:
        sys.exit(str(exc))
    try:
        sys.stdout.write(json.dumps({"uid": os.geteuid(), "pid": server.pid, "dsn": server.dsn}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await server.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
