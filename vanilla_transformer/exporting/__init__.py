# SPDX-License-Identifier: Apache-2.0
"""Model folders for other runtimes: transformers' own MarianMT, CTranslate2, ONNX and a browser."""
