"""The accelerator's registers by name, as the bundle's manifest lists them."""

from __future__ import annotations

from .bundle import Bundle
from .errors import BundleError, WrongHardware

MAJOR = 16  # VERSION: major in the high half; another major cannot be driven, a higher minor can


class Registers:
    """Named access. `device.read(offset)` and `device.write(offset, value)` reach the 32-bit registers."""

    def __init__(self, device, bundle: Bundle):
        listed = bundle.manifest.get("registers") or []
        self.entries = {entry["name"]: entry for entry in listed}
        if "value" not in self.entries.get("ID", {}):
            raise BundleError(f"{bundle.path}: its register map is of an older hwgen; build it again")
        self._offsets = {name: entry["offset"] for name, entry in self.entries.items()}
        self._bits = {name: entry.get("bits", {}) for name, entry in self.entries.items()}
        self._device = device

    def read(self, name: str) -> int:
        return self._device.read(self._offsets[name])

    def read_wide(self, name: str) -> int:
        """64 bits from NAME_LO and NAME_HI; right for a value that stands still or whose low half does not wrap."""
        return self.read(f"{name}_LO") | self.read(f"{name}_HI") << 32

    def write(self, name: str, value: int) -> None:
        self._device.write(self._offsets[name], value)

    def write_wide(self, name: str, value: int) -> None:
        self.write(f"{name}_LO", value & 0xFFFFFFFF)
        self.write(f"{name}_HI", value >> 32)

    def bit(self, name: str, bit: str) -> int:
        """Mask of a bit."""
        return self._bits[name][bit]

    def flags(self, name: str, value: int) -> list[str]:
        """Names of the bits that are set in a register's value."""
        return [bit for bit, mask in self._bits[name].items() if value & mask]

    def snapshot(self) -> dict[str, int]:
        """Every readable register, now."""
        return {name: self.read(name) for name, entry in self.entries.items() if entry["access"] != "wo"}

    def check_identity(self) -> None:
        """Raise WrongHardware unless the hardware is the one that the bundle was built for."""
        for name, entry in self.entries.items():
            if "value" not in entry:
                continue
            found, expected = self.read(name), entry["value"]
            good = found == expected
            if name == "VERSION":
                good = found >> MAJOR == expected >> MAJOR and found >= expected
            if not good:
                raise WrongHardware(
                    f"register {name} ({entry['doc']}) reads {found:#010x}, the bundle was built for {expected:#010x}: "
                    + ("no hwgen accelerator answers there" if name == "ID" else "load the bitstream of this bundle")
                )
