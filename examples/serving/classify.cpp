// SPDX-License-Identifier: MIT
// Run a file of `hf-internimage export MODEL exported` in ONNX Runtime: print the logits of each image.
//
//     ./classify exported/model.onnx pixels.raw N CHANNELS HEIGHT WIDTH
//     ./classify exported/model.onnx pixels.raw N CHANNELS HEIGHT WIDTH exported/libdcnv3-linux-x86_64.so
//
// The library is that of a folder of `--target onnxruntime`. pixels.raw holds N*CHANNELS*HEIGHT*WIDTH float32 numbers,
// normalised as preprocessor_config.json says. Compile with an archive of ONNX Runtime's releases:
//
//     g++ -std=c++17 -O1 classify.cpp -o classify -I$ORT/include -L$ORT/lib -Wl,-rpath,$ORT/lib -lonnxruntime

#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <vector>

int main(int count, char** arguments) {
  if (count != 7 && count != 8) {
    std::fprintf(stderr, "usage: %s MODEL.onnx PIXELS.raw N CHANNELS HEIGHT WIDTH [LIBRARY]\n", arguments[0]);
    return 2;
  }
  try {
    std::vector<int64_t> shape;
    size_t numbers = 1;
    for (int i = 3; i < 7; ++i) {
      shape.push_back(std::atoll(arguments[i]));
      numbers *= shape.back();
    }
    std::vector<float> pixels(numbers);
    const size_t bytes = numbers * sizeof(float);
    std::ifstream file(arguments[2], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), bytes)) {
      std::fprintf(stderr, "%s has fewer than %zu bytes\n", arguments[2], bytes);
      return 1;
    }
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "classify");
    Ort::SessionOptions options;
    if (count == 8) options.RegisterCustomOpsLibrary(arguments[7]);
    Ort::Session session(environment, arguments[1], options);
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto input = Ort::Value::CreateTensor<float>(memory, pixels.data(), numbers, shape.data(), shape.size());
    const char* input_name = "pixel_values";
    const char* output_name = "logits";
    auto outputs = session.Run(Ort::RunOptions(), &input_name, &input, 1, &output_name, 1);
    const int64_t labels = outputs[0].GetTensorTypeAndShapeInfo().GetShape()[1];
    const float* logits = outputs[0].GetTensorData<float>();
    for (int64_t image = 0; image < shape[0]; ++image) {
      for (int64_t label = 0; label < labels; ++label) {
        std::printf(label ? " %.9g" : "%.9g", logits[image * labels + label]);
      }
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
