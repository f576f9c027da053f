import numpy as np

from bvit.data.video import VideoFile, read_frames


def test_no_frame_of_another_size_is_left_out(tmp_path):
    video = VideoFile(tmp_path / "a.mp4", 5)
    for grey, height in ((200, 48), (160, 80), (120, 32)):
        video.write(np.full((height, 64, 3), grey, np.uint8))
    video.close()
    frames = list(read_frames(str(tmp_path / "a.mp4")))
    assert [frame.shape for frame in frames] == 3 * [(48, 64, 3)]
    assert [round(frame[:24].mean(), -1) for frame in frames] == [200, 160, 120]
    assert frames[2][40:].mean() < 10
