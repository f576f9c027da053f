import html

from bvit.report import formats


def test_names_are_text_in_a_page():
    lines = [["<i>run</i>"], ["<script>alert(1)</script>"]]
    page = formats.as_html("<b>runs", [("<img src=x>", lines)], {})
    for tag in ("<i>", "<script", "<b>", "<img"):
        assert tag not in page and html.escape(tag) in page
