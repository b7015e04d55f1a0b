// Properties and attributes of the simulated card.
#pragma once

#include <string>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Device;

// One device attribute by CUDA's number; unknown ones within CUDA's range are 0, as an absent feature is.
Error device_attribute(const Device& device, int attribute, int* value);

// What tells the devices of the machine apart, by their number before CUDA_VISIBLE_DEVICES.
int pci_bus(int physical_index);
std::string pci_bus_id(int physical_index);  // "0000:1a:00.0"
void fill_uuid(int physical_index, char (&uuid)[16]);
std::string uuid_text(int physical_index);  // "GPU-706f6f6c-..."

// cudaDeviceProp of CUDA 12 or 13.
template <class Properties>
void fill_properties(const Device& device, Properties& properties);

}  // namespace poolalloc::simgpu
