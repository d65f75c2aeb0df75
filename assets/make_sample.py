"""Make ``sample.mp4``: two seconds of Big Buck Bunny, small and visibly compressed, with its sound.

    python assets/make_sample.py bigbuckbunny.mp4 assets/sample.mp4

The sound is copied packet for packet. Needs nothing but PyAV.
"""

from __future__ import annotations

import sys
from fractions import Fraction

import av

FRAMES = 50
SIZE = 320, 180
AREA, ACCURATE = 0x20, 0x40000 | 0x2000  # swscale's flags: average over what a pixel covers


def main(source: str, target: str) -> None:
    """Scale, cut and encode ``source`` into ``target``."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(source) as film, av.open(target, "w", container_options=options) as sample:
        pictures, sound = film.streams.video[0], film.streams.audio[0]
        rate = pictures.average_rate or Fraction(25)
        video = sample.add_stream("libx264", rate=rate)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.options = {"crf": "27", "preset": "slow"}
        video.codec_context.time_base = pictures.time_base
        video.codec_context.colorspace = pictures.codec_context.colorspace
        audio = sample.add_stream_from_template(sound)
        sample.metadata["title"] = "Big Buck Bunny (two seconds of it, scaled down)"
        sample.metadata["artist"] = "Blender Foundation"
        sample.metadata["copyright"] = "(c) 2008, Blender Foundation / www.bigbuckbunny.org, CC BY 3.0"

        end, written = FRAMES / rate, 0
        for packet in film.demux(pictures, sound):
            if packet.stream is sound and packet.size and packet.pts * packet.time_base < end:
                packet.stream = audio
                sample.mux(packet)
            elif packet.stream is pictures:
                for frame in packet.decode():
                    if written < FRAMES:
                        frame = frame.reformat(*SIZE, interpolation=AREA | ACCURATE)
                        frame.pict_type = 0  # the encoder decides anew which frames are key frames
                        sample.mux(video.encode(frame))
                        written += 1
        sample.mux(video.encode(None))


if __name__ == "__main__":
    main(*sys.argv[1:3])
