"""Other forms of a file that compute the same: what exporters, optimisers and people make of one network."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CUTS = {"Conv": 3, "Gemm": 3, "LayerNormalization": 3, "Clip": 3, "Slice": 5}  # operators whose last inputs may be empty
OF_BODIES = 6  # nodes that go into one function or branch, at most


class Form:
    """A model in work: `draw` is the generator of every choice, `shapes` the shape of every value."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator, prefix: str):
        self.model, self.graph, self.rng = model, model.graph, rng
        self.prefix, self.count = prefix, 0
        self.held = {t.name: t for t in self.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        infos = [*inferred.input, *inferred.value_info, *inferred.output]
        known = [i for i in infos if i.type.tensor_type.HasField("shape")]
        self.shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in known}
        self.kinds = {i.name: i.type.tensor_type.elem_type for i in infos}
        for t in self.graph.initializer:
            self.shapes[t.name], self.kinds[t.name] = list(t.dims), t.data_type

    @property
    def opset(self) -> int:
        return next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def choose(self, values):
        return values[self.rng.integers(len(values))]

    def name(self) -> str:
        self.count += 1
        return f"{self.prefix}_{self.count}"

    def node(self, kind: str, *inputs: str, at: int = 0, **attributes) -> str:
        """A node before place `at`."""
        made = helper.make_node(kind, inputs, [self.name()], f"{self.prefix}_node_{self.count}", **attributes)
        self.graph.node.insert(at, made)
        return made.output[0]

    def hold(self, array) -> str:
        tensor = numpy_helper.from_array(np.asarray(array), self.name())
        self.graph.initializer.append(tensor)
        return tensor.name

    def floats(self) -> list[onnx.TensorProto]:
        return [t for t in self.graph.initializer if t.data_type == TensorProto.FLOAT]

    def rename(self, tensor: onnx.TensorProto) -> str:
        """Another name for an initialiser, whose old one something else makes now; the old one."""
        old, tensor.name = tensor.name, self.name()
        return old


def listed_initialisers(form: Form) -> None:
    """Every initialiser is an input too, as IR version 3 wants it."""
    form.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in form.graph.initializer)


def chains(form: Form) -> None:
    """Nodes that change nothing before some inputs of nodes."""
    for place in reversed(range(len(form.graph.node))):
        node = form.graph.node[place]
        for i, value in enumerate(node.input):
            if form.kinds.get(value) != TensorProto.FLOAT or not form.chance(0.12):
                continue
            kind = form.choose(("Identity", "Cast", "double", "Dropout", "Reshape"))
            if kind == "Cast":
                made = form.node("Cast", value, at=place, to=TensorProto.FLOAT)
            elif kind == "double":
                wide = form.node("Cast", value, at=place, to=TensorProto.DOUBLE)
                made = form.node("Cast", wide, at=place + 1, to=TensorProto.FLOAT)
            elif kind == "Reshape":
                if 0 in form.shapes.get(value, [0]):
                    continue
                made = form.node("Reshape", value, form.hold(np.int64(form.shapes[value])), at=place)
            else:
                made = form.node(kind, value, at=place)
            next(n for n in form.graph.node[place:] if n.output == node.output).input[i] = made


def narrow_weights(form: Form) -> None:
    """Weights in another floating point, cast when they are read."""
    kind = form.choose((TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
    for tensor in form.floats():
        array = numpy_helper.to_array(tensor)
        name = form.rename(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, array.shape, array.astype(np.float64).ravel()))
        made = form.node("Cast", tensor.name, to=TensorProto.FLOAT)
        next(n for n in form.graph.node if n.output[0] == made).output[0] = name


def constant_nodes(form: Form) -> None:
    """Initialisers as what else gives a constant."""
    for tensor in list(form.graph.initializer):
        if not form.chance(0.6) or tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT64):
            continue
        array, whole = numpy_helper.to_array(tensor), tensor.data_type == TensorProto.INT64
        kind = form.choose(("value", "attribute", "sparse", "fill", "halves", "turned", "flat", "typed", "identity"))
        old = tensor.name
        if kind == "attribute" and array.ndim < 2 and form.opset >= 12:
            how = {f"value_{'int' if whole else 'float'}{'s' if array.ndim else ''}": array.tolist()}
            node = helper.make_node("Constant", [], [old], form.name(), **how)
        elif kind == "sparse" and array.ndim and array.size and not whole:
            places = np.flatnonzero(array)
            if not places.size:
                continue
            values = numpy_helper.from_array(array.ravel()[places], form.name())
            sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, form.name()), array.shape)
            node = helper.make_node("Constant", [], [old], form.name(), sparse_value=sparse)
        elif kind == "fill" and array.size and array.ndim and (array == array.flat[0]).all():
            shape = form.hold(np.int64(array.shape))
            value = numpy_helper.from_array(array.ravel()[:1], form.name())
            node = helper.make_node("ConstantOfShape", [shape], [old], form.name(), value=value)
        elif kind == "halves" and array.ndim and array.shape[0] > 1:
            n = array.shape[0] // 2
            node = helper.make_node("Concat", [form.hold(array[:n]), form.hold(array[n:])], [old], form.name(), axis=0)
        elif kind == "turned" and array.ndim > 1 and not whole:
            axes = [int(a) for a in form.rng.permutation(array.ndim)]
            held = form.hold(np.ascontiguousarray(array.transpose(np.argsort(axes))))
            node = helper.make_node("Transpose", [held], [old], form.name(), perm=axes)
        elif kind == "flat" and array.ndim > 1:
            node = helper.make_node(
                "Reshape", [form.hold(array.ravel()), form.hold(np.int64(array.shape))], [old], form.name()
            )
        elif kind == "typed":
            tensor.CopyFrom(helper.make_tensor(old, tensor.data_type, array.shape, array.ravel().tolist()))
            continue
        elif kind == "identity":
            node = helper.make_node("Identity", [form.hold(array)], [old], form.name())
        else:
            node = helper.make_node("Constant", [], [old], form.name(), value=numpy_helper.from_array(array, form.name()))
        form.graph.initializer.remove(tensor)
        form.graph.node.insert(0, node)


def negative_axes(form: Form) -> None:
    for place in reversed(range(len(form.graph.node))):
        node = form.graph.node[place]
        value = node.output[0] if node.op_type == "Unsqueeze" else node.input[0] if node.input else ""
        rank = len(form.shapes.get(value, ()))
        if not rank:
            continue
        for attribute in node.attribute:
            if attribute.name == "axis" and attribute.i > 0 and form.chance(0.7) and node.op_type != "Flatten":
                attribute.i -= rank
            elif attribute.name == "axes":
                attribute.ints[:] = [a - rank if a >= 0 else a for a in attribute.ints]
        at = 3 if node.op_type == "Slice" else 1 if node.op_type in ("Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax") else 9
        if at < len(node.input) and node.input[at] in form.held:
            axes = numpy_helper.to_array(form.held[node.input[at]])
            node.input[at] = form.hold(np.where(axes < 0, axes, axes - rank))


def empty_names(form: Form) -> None:
    """Nodes without a name; inputs that are left out by an empty name."""
    for node in form.graph.node:
        node.name = ""
        most = CUTS.get(node.op_type, 0)
        if not node.domain and 0 < len(node.input) < most and form.chance(0.6):
            node.input.extend([""] * (most - len(node.input)))


def odd_names(form: Form) -> None:
    """Values called as PyTorch, TensorFlow and people call them."""
    inner = {o for n in form.graph.node for o in n.output if o} | {t.name for t in form.graph.initializer}
    inner -= {o.name for o in form.graph.output} | {v.name for v in form.graph.input}
    frame = form.choose(("/net/{}/Add_output_0", "{}:0", "{} é", "%{}", "{}.weight", "a b/../{}", "{}\t"))
    names = {name: frame.format(name) for name in inner}
    for tensor in form.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in form.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]


def shared_initialisers(form: Form) -> None:
    """One initialiser for all of the same numbers, as deduplication leaves them."""
    first: dict[tuple, str] = {}
    names = {}
    for t in form.graph.initializer:
        names[t.name] = first.setdefault((t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()), t.name)
    for node in form.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
    kept = [t for t in form.graph.initializer if names[t.name] == t.name]
    del form.graph.initializer[:]
    form.graph.initializer.extend(kept)


def leftovers(form: Form) -> None:
    """What nothing reads, and what is said about the graph twice; nodes in another order of their data."""
    form.hold(np.float32([np.nan, np.inf]))
    value = form.graph.input[0].name
    form.graph.node.append(helper.make_node("Sin", [value], [form.name()], "unused"))
    form.graph.doc_string = "a graph"
    helper.set_model_props(form.model, {"author": "x"})
    inferred = onnx.shape_inference.infer_shapes(form.model)
    form.graph.value_info.extend(inferred.graph.value_info)
    order, rest = [], [*form.graph.node]
    made = {v.name for v in form.graph.input} | {t.name for t in form.graph.initializer} | {""}
    while rest:
        ready = [i for i, n in enumerate(rest) if set(n.input) <= made]
        node = rest.pop(form.choose(ready))
        made.update(node.output)
        order.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del form.graph.node[:]
    form.graph.node.extend(copies)


def named_domain(form: Form) -> None:
    """ONNX's own domain by its other name."""
    for node in form.graph.node:
        node.domain = node.domain or "ai.onnx"
    for opset in form.model.opset_import:
        opset.domain = opset.domain or "ai.onnx"


def computed_shapes(form: Form) -> None:
    """Shapes of Reshape from the shape of what it reads, as exports with an open batch axis have them."""
    for place in reversed(range(len(form.graph.node))):
        node = form.graph.node[place]
        if node.op_type != "Reshape" or node.input[1] not in form.held or not form.chance(0.7):
            continue
        shape, read = numpy_helper.to_array(form.held[node.input[1]]), form.shapes.get(node.input[0])
        if not read or shape[0] != read[0] or shape.size < 2:
            continue
        length = form.node("Shape", node.input[0], at=place)
        if form.chance(0.5):
            first = form.node("Gather", length, form.hold(np.int64(0)), at=place + 1, axis=0)
            axes, attribute = ([form.hold(np.int64([0]))], {}) if form.opset >= 13 else ([], {"axes": [0]})
            first = form.node("Unsqueeze", first, *axes, at=place + 2, **attribute)
        else:
            first = form.node("Slice", length, form.hold(np.int64([0])), form.hold(np.int64([1])), at=place + 1)
        last = next(i for i, n in enumerate(form.graph.node) if first in n.output)
        form.node("Concat", first, form.hold(shape[1:]), at=last + 1, axis=0)
        form.graph.node[last + 2].input[1] = form.graph.node[last + 1].output[0]


def _run(form: Form) -> tuple[int, list[onnx.NodeProto], list[str], list[str]] | None:
    """Some nodes that follow each other: where, copies of them, what they read from elsewhere, what others read of them."""
    n = len(form.graph.node)
    if n < 3:
        return None
    size = int(form.rng.integers(1, OF_BODIES + 1))
    at = int(form.rng.integers(0, max(1, n - size)))
    nodes = [onnx.NodeProto.FromString(v.SerializeToString()) for v in form.graph.node[at : at + size]]
    made = {o for v in nodes for o in v.output}
    read = list(dict.fromkeys(i for v in nodes for i in v.input if i and i not in made))
    others = {i for v in [*form.graph.node[:at], *form.graph.node[at + size :]] for i in v.input}
    others |= {g for v in form.graph.node for a in v.attribute if a.type == a.GRAPH for w in a.g.node for g in w.input}
    others |= {o.name for o in form.graph.output}
    outputs = [o for v in nodes for o in v.output if o in others]
    if not outputs or any(a.type == a.GRAPH for v in nodes for a in v.attribute):
        return None
    del form.graph.node[at : at + size]
    return at, nodes, read, outputs


def functions(form: Form) -> None:
    """Nodes within functions of the file, one of whose attributes may come from the call; functions call functions."""
    for i in range(int(form.rng.integers(1, 5))):
        if (found := _run(form)) is None:
            continue
        at, nodes, read, outputs = found
        name, handed, names = f"f{i}", {}, []
        for node in nodes:
            for attribute in node.attribute:
                number = not node.domain and attribute.type in (attribute.INT, attribute.INTS, attribute.FLOAT)
                if number and not names and form.chance(0.2):
                    handed["a"] = helper.get_attribute_value(attribute)
                    of_call = onnx.AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name="a")
                    attribute.CopyFrom(of_call)
                    names = ["a"]
        inner = {v: f"x{j}" for j, v in enumerate(read)}
        for node in nodes:
            node.input[:] = [inner.get(v, v) for v in node.input]
        domains = [helper.make_opsetid("", form.opset), helper.make_opsetid("local", 1)]
        made = helper.make_function("local", name, [inner[v] for v in read], outputs, nodes, domains, names)
        form.model.functions.append(made)
        form.graph.node.insert(at, helper.make_node(name, read, outputs, f"call_{i}", domain="local", **handed))
    if form.model.functions:
        form.model.opset_import.append(helper.make_opsetid("local", 1))


def branches(form: Form) -> None:
    """Nodes within a branch of an If whose condition is known."""
    for i in range(int(form.rng.integers(1, 4))):
        if (found := _run(form)) is None:
            continue
        at, nodes, _, outputs = found
        if any(0 in form.shapes.get(o, [0]) or form.kinds.get(o) != TensorProto.FLOAT for o in outputs):
            for node in reversed(nodes):
                form.graph.node.insert(at, node)
            continue
        yes = form.chance(0.5)
        infos = [helper.make_tensor_value_info(o, form.kinds[o], form.shapes[o]) for o in outputs]
        taken = helper.make_graph(nodes, f"taken_{i}", [], infos)
        zeros = []
        for j, o in enumerate(outputs):
            nothing = numpy_helper.from_array(np.zeros(form.shapes[o], np.float32))
            zeros.append(helper.make_node("Constant", [], [f"none_{i}_{j}"], f"zeros_{i}_{j}", value=nothing))
        infos = [helper.make_tensor_value_info(f"none_{i}_{j}", form.kinds[o], form.shapes[o]) for j, o in enumerate(outputs)]
        other = helper.make_graph(zeros, f"other_{i}", [], infos)
        how = {"then_branch": taken if yes else other, "else_branch": other if yes else taken}
        kind = form.choose(("initialiser", "node", "not", "shape"))
        image = form.graph.input[0].name
        if kind == "shape":
            length = form.node("Shape", image, at=at)
            one = form.node("Gather", length, form.hold(np.int64(1)), at=at + 1, axis=0)
            size = form.shapes[image][1] if yes else form.shapes[image][1] + 1
            condition, at = form.node("Equal", one, form.hold(np.int64(size)), at=at + 2), at + 3
        elif kind == "node":
            value = numpy_helper.from_array(np.array(yes))
            condition, at = form.node("Constant", at=at, value=value), at + 1
        elif kind == "not":
            condition, at = form.node("Not", form.hold(np.array(not yes)), at=at), at + 1
        else:
            condition = form.hold(np.array([yes]) if form.chance(0.3) else np.array(yes))
        form.graph.node.insert(at, helper.make_node("If", [condition], outputs, f"if_{i}", **how))


def other_floats(form: Form) -> None:
    """All of it in double or half precision, inputs and outputs too; grids are of single precision only."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in form.graph.node):
        return
    kind = form.choose((TensorProto.DOUBLE, TensorProto.FLOAT16))
    dtype = np.float64 if kind == TensorProto.DOUBLE else np.float16
    for tensor in form.floats():
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for node in form.graph.node:
        for attribute in node.attribute:
            if attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(dtype)))
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
        if node.op_type == "Resize":  # whose scales stay float32
            for i in (1, 2):
                if i < len(node.input) and node.input[i] in form.held:
                    node.input[i] = form.hold(numpy_helper.to_array(form.held[node.input[i]]).astype(np.float32))
    for info in [*form.graph.input, *form.graph.output]:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = kind


FORMS = (
    other_floats, chains, narrow_weights, constant_nodes, negative_axes, empty_names, odd_names,
    shared_initialisers, leftovers, computed_shapes, functions, branches, listed_initialisers,
    named_domain,
)  # fmt: skip


def rewritten(model: onnx.ModelProto, rng: np.random.Generator) -> tuple[onnx.ModelProto, list[str]]:
    """The model in one to three other forms, and what they are called."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    chosen = sorted(rng.choice(len(FORMS), int(rng.integers(1, 4)), replace=False))
    for i in chosen:
        FORMS[i](Form(made, rng, FORMS[i].__name__))
        if FORMS[i] is not named_domain:
            onnx.checker.check_model(made)
    return made, [FORMS[i].__name__ for i in chosen]
