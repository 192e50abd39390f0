"""The application as a whole: its description, its page, its packages."""

import re

import pytest

from vitconv.errors import InputError
from vitconv.inference import optional
from vitconv.serving import rest


def test_the_page_loads_nothing_from_the_network(client):
    page = client.get("/docs").text
    addresses = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
    assert len(addresses) >= 4
    for address in addresses:
        assert address.startswith("/") and not address.startswith("//"), address
        answer = client.get(address)
        assert answer.status_code == 200 and len(answer.content) > 500
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert not re.search(
            rb"(@import|url\()\s*[\"']?(https?:)?//", client.get(f"/static-offline-docs/{name}").content
        )


def test_the_description(client):
    found = client.get("/openapi.json").json()
    assert found["info"]["title"] == "trees, served by vitconv"
    assert set(found["paths"]) == {
        *("/v1/predict", "/v1/predict/batch", "/health/live", "/health/ready", "/metrics"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/{name}", "/v2/models/{name}/ready", "/v2/models/{name}/infer"),
    }
    assert all(operation.get("summary") for path in found["paths"].values() for operation in path.values())
    form = found["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"] == {"image": {"type": "string", "format": "binary"}}  # Swagger UI shows a file chooser


def test_a_key_is_described(start):
    found = start(api_key="x").get("/openapi.json").json()
    assert found["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert found["paths"]["/v1/predict"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in found["paths"]["/health/live"]["get"]


def test_the_key_is_not_shown():
    assert "sesame" not in repr(rest.Settings(api_key="sesame"))


@pytest.mark.parametrize("name", ["bind", "create_app", "serve"])
def test_a_missing_package_is_named_when_it_is_needed(monkeypatch, name):
    monkeypatch.setattr(optional, "find_spec", lambda package: None if package == "httptools" else 1)
    with pytest.raises(InputError, match=r"not installed: httptools\.\nInstall them with .*\[serve\]"):
        getattr(rest, name)(1, 2)


def test_what_the_package_has_not():
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        rest.transmogrify  # noqa: B018
