"""A running service: answers, errors, processes that die, shutdown."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_client import form, read_answer

from tsm_jax.assemble.load import load


@pytest.fixture(scope="module")
def film_bytes(videos):
    return (videos / "1.mp4").read_bytes()


@pytest.fixture(scope="module")
def predictor(exported):
    return load(exported, engine="onnxruntime")


def test_it_answers_what_predict_answers(service, predictor, videos, film_bytes):
    expected = predictor.predict(videos / "1.mp4", 3)
    answer = service.post(film_bytes, "?top_k=3")
    assert answer.status == 200
    assert [each["label"] for each in answer.values["predictions"]] == [e.label for e in expected]
    scores = [each["score"] for each in answer.values["predictions"]]
    np.testing.assert_allclose(scores, [each.score for each in expected], atol=2e-6)
    assert answer.values["id"] == answer.headers["x-request-id"]
    body, kind = form(film_bytes)
    as_form = service.post(body, "?top_k=3", kind)
    assert as_form.values["predictions"] == answer.values["predictions"]
    assert as_form.values["video"] == "a.mp4"
    assert as_form.values["id"] != answer.values["id"]
    crops = service.post(film_bytes, "?protocol=mit_twice&top_k=1").values["predictions"][0]
    twice = load(predictor.source, engine="onnxruntime", protocol="mit_twice")
    assert crops["score"] == pytest.approx(twice.predict(videos / "1.mp4")[0].score, abs=2e-6)


def test_a_timeline_is_that_of_predict(service, predictor, videos, film_bytes):
    answer = service.post(film_bytes, "?timeline=true&window=0.4&step=0.2&top_k=2")
    expected = list(predictor.timeline(videos / "1.mp4", window=0.4, step=0.2, top_k=2))
    assert len(expected) > 2
    found = answer.values["timeline"]
    assert [(each["start"], each["end"]) for each in found] == [
        (round(each.start, 3), round(each.end, 3)) for each in expected
    ]
    for moment, wanted in zip(found, expected, strict=True):
        assert [each["index"] for each in moment["predictions"]] == [
            each.index for each in wanted.predictions
        ]


# Wrong requests (query, Content-Type, other header, body, None for the film), status and code.
WRONG = [
    ("?topk=3", "video/mp4", "", None, 422, "bad_option"),
    ("?top_k=0", "video/mp4", "", None, 422, "bad_option"),
    ("?top_k=6", "video/mp4", "", None, 422, "bad_option"),
    ("?top_k=1_0", "video/mp4", "", None, 422, "bad_option"),
    ("?top_k=1&top_k=1", "video/mp4", "", None, 422, "bad_option"),
    ("?window=2", "video/mp4", "", None, 422, "bad_option"),
    ("?timeline=true&window=nan", "video/mp4", "", None, 422, "bad_option"),
    ("?timeline=yes", "video/mp4", "", None, 422, "bad_option"),
    ("?protocol=../x", "video/mp4", "", None, 422, "bad_option"),
    ("?timeline=true&window=0.1&step=0.1", "video/mp4", "", b"", 422, "unreadable_video"),
    ("", "video/mp4", "", b"no video", 422, "unreadable_video"),
    ("", "video/mp4", "Content-Encoding: gzip\r\n", None, 415, "unsupported_encoding"),
    ("", "multipart/form-data", "", None, 400, "bad_request"),
    ("", "multipart/form-data; boundary=limit", "", None, 400, "bad_request"),
    ("", "multipart/form-data; boundary=" + "x" * 2000, "", None, 400, "bad_request"),
    ("", "multipart/form-data; boundary=limit", "", b"--limit--\r\n", 400, "bad_request"),
    ("", "multipart/form-data; boundary=limit", "", form(b"x", field="f")[0], 400, "bad_request"),
    ("", "multipart/form-data; boundary=limit", "", form(b"x")[0][:-9], 400, "bad_request"),
    ("", "multipart/form-data; boundary=limit", "", form(b"")[0], 422, "unreadable_video"),
    ("", "video/mp4", "", bytes((1 << 20) + 1), 413, "upload_too_large"),
]


def test_wrong_requests_have_their_own_errors(service, film_bytes):
    described = json.loads(service.get("/openapi.json").body)["paths"]["/v1/predict"]["post"]
    for query, kind, more, body, status, code in WRONG:
        answer = service.post(film_bytes if body is None else body, query, kind, more)
        assert (answer.status, answer.values["code"]) == (status, code), (query, kind, body)
        assert code in described["responses"][str(status)]["description"]
    assert service.get("/v1/predict").status == 405
    assert service.get("/../../etc/passwd").status == 404
    assert service.send(b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n").status == 400
    assert service.temporary() == []


def test_names_are_neither_paths_nor_headers(service, videos):
    broken = (videos / "2_broken.mp4").read_bytes()
    body, kind = form(broken, '../../<b>\\x"\r\nX-Bad: 1.mp4')
    answer = service.post(body, "", kind)
    assert answer.status in (400, 422) and "x-bad" not in answer.headers
    body, kind = form(broken, "../../etc/<script>alert(1)</script>.mp4")
    answer = service.post(body, "", kind)
    assert answer.status == 422 and answer.headers["content-type"] == "application/json"
    assert (
        "script>.mp4" in answer.values["error"]
        and str(service.folder) not in answer.values["error"]
    )
    assert service.get("/v1/%0d%0aX-Bad:1").headers.keys().isdisjoint({"x-bad"})


def test_a_body_is_refused_while_it_arrives(service):
    with service.connect() as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(17):
            connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        assert read_answer(connection).status == 413  # before the end of the body was sent
    with service.connect() as connection:
        connection.sendall(service.head(1 << 40))
        assert read_answer(connection).status == 413
    assert service.temporary() == []


def test_slow_clients_are_disconnected(service):
    with service.connect() as silent, service.connect() as half, service.connect() as slow:
        half.sendall(b"GET / HTTP/1.1\r\nHos")
        slow.sendall(service.head(100) + b"x")
        assert read_answer(slow).values["code"] == "upload_too_slow"
        for connection in (silent, half):
            assert _ended(connection)
    assert service.temporary() == []


def _ended(connection) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_too_many_pixels(service, film, tmp_path):
    large = film(tmp_path / "large.mp4", np.zeros((2, 160, 160, 3), np.uint8)).read_bytes()
    answer = service.post(large)
    assert (answer.status, answer.values["code"]) == (422, "resolution_too_high")


def test_processes_have_only_what_they_need(service):
    pids = service.processes()
    limits = Path(f"/proc/{pids['decode']}/limits").read_text()
    assert "Max open files            64 " in limits and "Max file size             0 " in limits
    for pid in (service.process.pid, *pids.values()):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "jaxlib" not in maps
        assert ("onnxruntime" in maps) == (pid == pids["engine"])


def test_processes_may_die(service, film_bytes):
    for name in ("decode", "engine"):
        os.kill(service.processes()[name], signal.SIGKILL)
        assert service.post(film_bytes).status == 200
    assert service.processes().keys() == {"decode", "engine"}
    figures = service.get("/metrics").body.decode()
    assert "tsm_process_failures_total" in figures
    assert 'tsm_requests_total{path="/v1/predict",status="200"}' in figures


def test_the_log_has_the_ids_of_answers(service, film_bytes):
    answer = service.post(film_bytes)
    time.sleep(0.1)
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (line,) = [line for line in lines if line["id"] == answer.values["id"]]
    assert line["status"] == 200 and line["bytes"] == len(film_bytes)


def test_accepted_requests_are_finished_on_sigterm(start_service, tmp_path, film_bytes):
    service = start_service(tmp_path, "--decoders", "1", "--max_requests", "3")
    answers = []

    def ask() -> None:
        answers.append(service.post(film_bytes, "?timeline=true&window=0.1&step=0.1").status)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    with service.connect() as unfinished:
        unfinished.sendall(service.head(len(film_bytes)) + film_bytes[:100])
        _until(lambda: service.temporary())  # accepted before the others
        for thread in threads:
            thread.start()
        _until(lambda: len(service.temporary()) + len(answers) >= 4)
        service.process.send_signal(signal.SIGTERM)
        unfinished.sendall(film_bytes[100:])
        assert read_answer(unfinished).status in (200, 503)
    for thread in threads:
        thread.join()
    assert service.process.wait(60) == 0
    assert set(answers) <= {200, 503} and 200 in answers
    assert list(tmp_path.glob("tsm_jax-serve-*")) == []


def test_sigterm_while_the_network_is_loading(start_service, tmp_path):
    service = start_service(tmp_path, "--decoders", "1", answers=False)
    assert service.stop() == 0
    assert service.errors.read_text().splitlines()[1:] == ["stopped"]
    assert list(tmp_path.glob("tsm_jax-serve-*")) == []
    assert service.processes() == {}


@pytest.mark.slow
def test_a_killed_service_leaves_nothing_behind(start_service, tmp_path, film_bytes):
    service = start_service(tmp_path, "--decoders", "1")
    with service.connect() as connection:
        connection.sendall(service.head(len(film_bytes)) + film_bytes[:100])
        _until(lambda: service.temporary())
        children = service.processes().values()
        service.process.kill()
        service.process.wait()
    for _ in range(200):
        left = [*tmp_path.glob("tsm_jax-serve-*"), *filter(_runs, children)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def _until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited for a minute")


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
    except OSError:
        return False
