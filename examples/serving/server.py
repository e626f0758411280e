# SPDX-License-Identifier: MIT
"""Serve an exported classifier over HTTP; images that arrive together run as one batch.

    MODEL=exported uvicorn server:app
    curl --data-binary @cat.jpg http://localhost:8000/classify

Needs fastapi, uvicorn, and what classify.py needs.
"""

import asyncio
import io
import os
from contextlib import asynccontextmanager

import numpy as np
from classify import Classifier
from fastapi import FastAPI, HTTPException, Request
from PIL import Image

MOST_IMAGES, SECONDS = 8, 0.005  # of a batch, and how long the first image waits for others


@asynccontextmanager
async def lifespan(app):
    app.state.classifier = Classifier(os.environ["MODEL"])
    app.state.waiting = asyncio.Queue()
    worker = asyncio.create_task(work(app.state.classifier, app.state.waiting))
    yield
    worker.cancel()


async def work(classifier, waiting):
    while True:
        entries = [await waiting.get()]
        await asyncio.sleep(SECONDS)
        while len(entries) < MOST_IMAGES and not waiting.empty():
            entries.append(waiting.get_nowait())
        try:
            scores = await asyncio.to_thread(classifier.scores, np.stack([pixels for pixels, _ in entries]))
        except Exception as error:  # the batch fails, the server goes on
            scores = [error] * len(entries)
        for (_, answer), result in zip(entries, scores, strict=True):
            if answer.done():  # the client has gone
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request):
    body, state = await request.body(), request.app.state
    try:
        pixels = await asyncio.to_thread(lambda: state.classifier.pixels(Image.open(io.BytesIO(body))))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise HTTPException(400, f"the body is no image: {error}") from error
    answer = asyncio.get_running_loop().create_future()
    await state.waiting.put((pixels, answer))
    label, score = state.classifier.best(await answer)
    return {"label": label, "score": score}
