// SPDX-License-Identifier: MIT
// Run a package of `hf-internimage export MODEL exported --target aoti` without Python: print the logits of each image.
//
//     ./classify exported/model.pt2 pixels.raw N CHANNELS HEIGHT WIDTH
//
// pixels.raw holds N*CHANNELS*HEIGHT*WIDTH float32 numbers, normalised as preprocessor_config.json says.
// Compile with PyTorch's C++ library, here that of the Python package:
//
//     TORCH=$(python -c "import torch; print(torch.__path__[0])")
//     g++ -std=c++20 -O1 classify.cpp -o classify -I$TORCH/include -I$TORCH/include/torch/csrc/api/include
//         -L$TORCH/lib -Wl,-rpath,$TORCH/lib -ltorch -ltorch_cpu -lc10   (one line)

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <vector>

int main(int count, char** arguments) {
  if (count != 7) {
    std::fprintf(stderr, "usage: %s MODEL.pt2 PIXELS.raw N CHANNELS HEIGHT WIDTH\n", arguments[0]);
    return 2;
  }
  try {
    std::vector<int64_t> shape;
    for (int i = 3; i < 7; ++i) shape.push_back(std::atoll(arguments[i]));
    at::Tensor pixels = at::empty(shape, at::kFloat);
    std::ifstream file(arguments[2], std::ios::binary);
    if (!file.read(static_cast<char*>(pixels.data_ptr()), pixels.nbytes())) {
      std::fprintf(stderr, "%s has fewer than %lld bytes\n", arguments[2], static_cast<long long>(pixels.nbytes()));
      return 1;
    }
    at::NoGradGuard no_gradients;
    torch::inductor::AOTIModelPackageLoader model(arguments[1]);
    at::Tensor logits = model.run({pixels})[0].contiguous();
    for (int64_t image = 0; image < logits.size(0); ++image) {
      for (int64_t label = 0; label < logits.size(1); ++label) {
        std::printf(label ? " %.9g" : "%.9g", logits.const_data_ptr<float>()[image * logits.size(1) + label]);
      }
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
