import pytest
from PIL import Image

from bvit.data.preprocessing import Preprocessing


def test_a_grey_image_of_pillows_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"got uint8 \(20, 30\); .*image.convert\('RGB'\)"):
        Preprocessing(8, 9, "bilinear")(Image.new("L", (30, 20)))
