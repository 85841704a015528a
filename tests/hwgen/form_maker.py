"""Small networks written node by node: what tests of the ways to write a model build theirs from."""


import pytest

import moe_maker as maker
from hwgen.errors import UserError
from hwgen.levels import check, import_model

IMAGE, PIXELS = (2, 4, 6), 8  # 2 x 3 patches of 2 x 2 pixels of 2 channels
T, D, H = 6, 8, 2  # tokens, width, heads
MICROSOFT = {"domain": "com.microsoft"}


class Writer(maker.Writer):
    def linear(self, x, inputs=D, outputs=D):
        y = self.op("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5))
        return self.op("Add", y, self.normal(outputs, scale=0.3))

    def patches(self, image="image", **attributes):
        """Patch embedding as a feature map [1, D, 2, 3]."""
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2], **attributes}
        w = self.normal(D, IMAGE[0], *attributes["kernel_shape"])
        return self.op("Conv", image, w, self.normal(D), **attributes)

    def as_tokens(self, x):
        return self.op("Transpose", self.op("Reshape", x, [1, D, -1]), perm=[0, 2, 1])

    def tokens(self):
        """[1, T, D]."""
        return self.as_tokens(self.patches())

    def norm(self, x, width=D):
        return self.op("LayerNormalization", x, 1 + self.normal(width, scale=0.2), self.normal(width), axis=-1)

    def heads(self, x):
        return self.op("Transpose", self.op("Reshape", x, [1, T, H, D // H]), perm=[0, 2, 1, 3])

    def attend(self, q, k, v, shape=(1, T, D)):
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), 0.5)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), list(shape))


def imported(tmp_path, form, shape=(1, T, D), **options):
    """(the form's graph, the kinds of its nodes)."""
    w = Writer()
    result = import_model(w.write(tmp_path / "m.onnx", IMAGE, form(w), list(shape), **options))
    return result, [type(n).__name__ for n in result.nodes]


def assert_refused(tmp_path, form, op, reason, hint):
    """`form` (a function of a Writer) is refused at nodes `op` with that reason and hint, by `check` and by the import."""
    w = Writer()
    y = form(w)
    path = w.write(tmp_path / "m.onnx", IMAGE, y, ["n", "t", D])
    findings = check(path)
    kinds = {n.name: n.op_type for n in w.nodes}
    assert findings and all(kinds[f.node] == f.op for f in findings), findings
    assert {f.op for f in findings} == {op}, findings
    assert reason in findings[0].reason and hint in findings[0].hint, findings[0]
    with pytest.raises(UserError, match=findings[0].node):
        import_model(path)
