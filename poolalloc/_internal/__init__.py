"""What no user imports: the modules under the runtime API that nothing outside the package should rely on.

`installed` knows what serves this process, `bridge` and `private_folder` compile and keep the bridge to torch, and
`torch_slot`, `shared_tensors` and `first_touch` deal with torch's own places. `options` and `exact_bins` are behind
poolalloc.config. `trace` and `plan_file` are the files that the runtime writes and reads, with `npz` and
`atomic_files` under them. `price_lists` and `driver_work` price the driver's work, `workers` passes on figures of other
processes, `moved` keeps the old names of modules. `statistics` has the types of the native module's figures. The rest
is text, devices and words.

The package may import poolalloc.errors, poolalloc.sizes and the native module; nothing else of poolalloc.
"""
