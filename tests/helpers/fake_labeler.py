"""A labeler with the interface of PseudoLabeler. Forests depend on the pixels and, off the host, on the batch size.

The first pixel of an image can cause failures, see the constants. As a script it labels a folder, for kill tests.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

FAIL_FEATURES, FAIL_FINISH, KILL, KILL_ONCE = ((r, 1, 2) for r in range(201, 205))


@dataclass
class FakeExtractor:
    on_host: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def extract(self, images):
        for image in images:
            if tuple(image[0, 0]) == FAIL_FEATURES:
                raise RuntimeError("no features for this one")
        assert len({image.shape for image in images}) == 1
        batch = 0 if self.on_host else len(images)
        return np.stack([np.append(image.mean((0, 1)), batch).astype(np.float32).reshape(1, 1, 4) for image in images])


@dataclass
class FakeLabeler:
    extractor: FakeExtractor | None
    make: FakeFactory

    def describe(self):
        return {"name": "fake", "theta": self.make.theta, "nested": {"on_host": self.make.on_host}}

    @property
    def needs_extractor_to_finish(self):
        return self.make.crops

    def evidence(self, images):
        return [(features,) for features in self.extractor.extract(images)]

    def finish(self, image, features):
        first = tuple(image[0, 0])
        if first == KILL:
            if self.make.marker:
                with open(self.make.marker + ".kills", "a") as file:
                    file.write("+")
            os.kill(os.getpid(), signal.SIGKILL)
        if first == KILL_ONCE:
            try:
                os.mkdir(self.make.marker)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if first == FAIL_FINISH:
            raise ValueError("no forest at 0x7f00 for this one")
        time.sleep(self.make.seconds)
        score = float(features.sum()) / 2000
        if self.make.crops:
            score += float(self.extractor.extract([image[:2, :2]]).sum()) / 3000
        height, width = image.shape[:2]
        masks = np.zeros((4, height, width), bool)
        masks[0] = True
        masks[1, : (height + 1) // 2] = True
        masks[2, : (height + 3) // 4, : (width + 1) // 2] = True
        masks[3] = image[:, :, 0] > image[:, :, 0].mean()
        masks = masks[masks.any((1, 2))]
        scores = np.linspace(0, 1 / 3, len(masks)) + score
        sources = ["local" if self.make.crops else "global"] * len(masks)
        return Forest.from_masks(encode_masks(masks), (height, width), scores=scores % 1, sources=sources)


@dataclass(frozen=True)
class FakeFactory:
    """Picklable factory of labelers for worker processes.

    Attributes:
        marker: a path; KILL_ONCE creates a folder there, and each KILL adds a character to the file `<marker>.kills`.
        crops: whether `finish` calls the extractor as well.
        only_in: id of the only process in which labelers can be built; 0: any.
    """

    on_host: bool = True
    crops: bool = False
    theta: float = 0.9
    seconds: float = 0.0
    marker: str = ""
    only_in: int = 0

    def __call__(self, with_extractor):
        if self.only_in not in (0, os.getpid()):
            raise RuntimeError("not in this process")
        return FakeLabeler(FakeExtractor(self.on_host) if with_extractor else None, self)

    def pinned(self, labeler):
        return self


if __name__ == "__main__":
    from sohes_d2.data.sources import read_image_list
    from sohes_d2.labeling.run import LabelingOptions, run_labeling

    folder, output, host, workers = sys.argv[1:]
    factory = FakeFactory(on_host=host == "host", seconds=0.02)
    options = LabelingOptions(workers=int(workers), batch_size=3, images_per_shard=10, resume=True)
    sys.exit(run_labeling(read_image_list(folder), output, factory, options).exit_code)
