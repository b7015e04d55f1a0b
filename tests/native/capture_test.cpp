// The gate: who may ask and wait while graphs are being captured.
#include "core/streams/capture.h"

#include <doctest/doctest.h>

#include <thread>

#include "driver/model_driver.h"
#include "effort.h"

using namespace poolalloc;

namespace {

TEST_CASE("a thread that captures does not ask and others do") {
  ModelDriver model;
  CaptureGate gate(model);
  gate.begin(0);
  CHECK((gate.captures() && !gate.may_ask() && !gate.no_capture()));
  std::thread([&] { CHECK((gate.may_ask() && !gate.no_capture())); }).join();
  gate.begin(0);
  gate.end(0);
  CHECK((gate.captures() && !gate.may_ask()));
  std::thread([&] { gate.end(0); }).join();  // a capture may end on another thread
  CHECK((!gate.captures() && gate.may_ask() && gate.no_capture()));
  gate.end(0);  // and nothing happens where none was announced
  CHECK(!gate.captures());
}

TEST_CASE("no capture begins while somebody relies on that") {
  ModelDriver model;
  CaptureGate gate(model);
  for (int i = 0; i < stress::steps(500); ++i) {
    std::atomic<bool> released{false}, in_order{false};
    std::optional<NoCapture> token = gate.no_capture();
    CHECK(token.has_value());
    std::thread capturing([&] {
      gate.begin(0);
      in_order = released.load();
      gate.end(0);
    });
    while (!gate.captures()) std::this_thread::yield();
    CHECK(!gate.no_capture());
    for (int turns = 0; turns < 20; ++turns) std::this_thread::yield();
    released = true;
    token.reset();
    capturing.join();
    CHECK(in_order);
  }
}

TEST_CASE("who waits for a device asks its streams and no other") {
  ModelOptions options;
  options.devices = 2;
  ModelDriver model(options);
  CaptureGate gate(model);
  gate.know({0, 5});
  gate.know({1, 5});
  model.begin_capture(1, 5);  // nobody announces it
  CHECK((gate.no_capture() && gate.no_capture(0) && !gate.no_capture(1)));
  gate.forget({1, 5});
  CHECK(gate.no_capture(1));
}

TEST_CASE("no event is recorded into a capture") {
  ModelDriver model;
  CaptureGate gate(model);
  EventHandle event = 0;
  CHECK(model.create_event(0, &event) == Status::ok);
  model.begin_capture(0, 5);
  CHECK(gate.record_behind({0, 5}, event) == Status::not_ready);
  CHECK(gate.record_behind({0, 6}, event) == Status::ok);
  model.end_capture(0, 5);
  CHECK(gate.record_behind({0, 5}, event) == Status::ok);
  model.fail(DriverCall::stream_capturing, 1, Status::failed);
  CHECK(gate.record_behind({0, 5}, event) == Status::failed);  // it may be: nobody knows
  CHECK(model.violations() == 0);
}

}  // namespace
