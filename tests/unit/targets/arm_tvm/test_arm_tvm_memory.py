"""What is counted as the emulated program's memory, from maps as the kernel prints them."""

from targets.arm_tvm.run.guest_memory import guest_resident_bytes


def mapping(rights: str, name: str, kib: int, *, at: int = 0x5500000000) -> str:
    return f"{at:x}-{at + 4096:x} {rights} 00000000 fe:00 1234 {' ' * 20}{name}\nSize: 9999 kB\nRss: {kib} kB\n"


def test_files_and_anonymous_memory_of_the_program_count():
    smaps = mapping("r--p", "/bundle/payload/weights.bin", 100) + mapping("rw-p", "", 10)
    assert guest_resident_bytes(smaps) == 110 * 1024


def test_what_qemu_executes_does_not_count():
    smaps = mapping("rwxp", "", 500) + mapping("r--p", "/bin/qemu", 7) + mapping("r-xp", "/bin/qemu", 9)
    assert guest_resident_bytes(smaps + mapping("rw-p", "[heap]", 30) + mapping("rw-p", "[stack]", 3)) == 0


def test_library_of_the_program_counts_although_it_holds_code():
    smaps = mapping("r--p", "/bundle/libtvm.so", 40) + mapping("rw-p", "/bundle/libtvm.so", 2)
    assert guest_resident_bytes(smaps) == 42 * 1024


def test_process_that_has_ended_has_none():
    assert guest_resident_bytes("") == 0


def test_what_qemu_keeps_for_each_thread_of_the_program_does_not_count():
    smaps = mapping("rw-p", "", 148) + mapping("rw-p", "", 1096, at=0x7F99E8000000)
    assert guest_resident_bytes(smaps) == 148 * 1024


def test_program_that_had_to_be_placed_elsewhere_counts():
    assert guest_resident_bytes(mapping("rw-p", "", 10, at=0x7F0000000000)) == 10 * 1024
