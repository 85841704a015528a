"""A vision transformer of timm, from PyTorch to checked hardware: exported, built, verified, compared, drawn. Needs timm."""

import shutil

import numpy as np
import timm
import torch

import hwgen

model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10).eval()  # pretrained=True: your weights
images = np.random.default_rng(0).normal(size=(16, 3, 64, 64)).astype(np.float32)  # in place of yours, normalised as in training
torch.onnx.export(model, torch.from_numpy(images[:1]), "vit.onnx", input_names=["image"], output_names=["logits"], dynamo=False)
bundle = hwgen.build("vit.onnx", "vit.bundle", board="zcu104", calibrate=images)
print(bundle.verify(images, "machine", model="vit.onnx", min_snr=15, limit=2))  # bit for bit as golden; near the float model
print(bundle.compare("vit.onnx", images, limit=2))  # where the error enters, layer by layer
print(bundle.report()["tasks"][""]["images_per_second"], "images a second, estimated")
shutil.copy("vit.bundle/report.html", "vit.html")  # the page: timeline, roofline, where the cycles go
