"""From the start page into an image: by a study's link, and by the next image of a strategy."""

from __future__ import annotations

import pytest

from rayapp.config import ohif_folder
from rayapp.protocol import Role
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, write_label

pytestmark = pytest.mark.browser


def test_the_start_page_lists_opens_and_hands_out_images(serve: Serve, viewer: Viewer, tmp_path):
    served = serve(auth="token", ohif=ohif_folder())
    key = served.users.add("anna", Role.ANNOTATOR)
    served.token = key
    served.save("ct_a", write_label(tmp_path / "label.nii.gz"), "final")
    page = viewer.page
    page.goto(served.url)
    assert page.locator("#status").inner_text().startswith("Sign in with the access token")
    page.get_by_label("Your access token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.locator("#status", has_text="This access token is not known here.").wait_for()
    viewer.wrong.clear()  # that
    page.get_by_label("Your access token").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.locator("#status", has_text="3 images, 1 with a final label.").wait_for()
    rows = page.locator("#studies tbody tr")
    page.locator("#studies td", has_text="final, anna").wait_for()
    viewer.picture("start")
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["ct_a", "ct_b", "ct_ü"]
    page.get_by_label("Name", exact=True).fill("_b")
    page.get_by_role("button", name="Search").click()
    page.locator("#studies td", has_text="ct_a").wait_for(state="detached")
    page.get_by_role("link", name="Open ct_b").click()
    assert viewer.said() == "ready; this image has no final label yet"  # with the same key
    page.go_back()
    page.locator("#next select").select_option("first")
    page.get_by_role("button", name="Open the next image").click()
    assert viewer.said() == "ready; this image has no final label yet"
    assert page.locator(".rayapp .image").inner_text() == "ct_b"
