"""Parameter lists shaped as those of two well-known networks, generated, so that nothing is downloaded."""

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """The 161 parameters of ResNet-50 (25,557,032 numbers), in order."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> list[Shape]:
    """The 148 parameters of GPT-2 small, head tied to the embedding (124,439,808 numbers), in order."""
    d = 768
    block: list[Shape] = [
        *((d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,)),
        *((d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)),
    ]
    return [(50257, d), (1024, d), *block * 12, (d,), (d,)]


def vit_b() -> list[Shape]:
    """The 152 parameters of ViT-B/16 (86,567,656 numbers), in order."""
    d = 768
    block: list[Shape] = [
        *((d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)),
        *((d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)),
    ]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *block * 12, (d,), (d,), (1000, d), (1000,)]


NETWORKS = {
    "tutorial": lambda: [(5, 10), (5,), (1, 5), (1,)],
    "10,000 tiny": lambda: [(3, 3)] * 10_000,
    "ResNet-50": resnet50,
    "ViT-B": vit_b,
    "GPT-2 small": gpt2_small,
    "one billion": lambda: [(1_000_000_000,)],
}

if __name__ == "__main__":
    from math import prod

    for name, network in NETWORKS.items():
        shapes = network()
        print(f"{name}: {len(shapes)} tensors, {sum(map(prod, shapes)):,} numbers")
