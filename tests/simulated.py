"""The environment of every process that the tests run JAX in."""


def environment(devices: int) -> dict[str, str]:
    """`devices` simulated CPUs, without LLVM's optimisations: the tests compile more than they compute."""
    return {"JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"}
