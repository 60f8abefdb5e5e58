//! x86's flush rules natively, one CPU after the other: whom a flush interrupts, and what a CPU that was passed by makes up
//! for.

use lazytlb::core::mm_switch::FlushRange;
use lazytlb::shootdown::{X86_6_12, X86_6_14};
use lazytlb::{LazyTlb, Platform, Refcount};
use lazytlb_toy::{Free, HW, INIT_ROOT, Machine, Toy, on_cpu};

fn ipis() -> usize {
    HW.with(|hw| hw.ipis.get())
}

fn tag_flushes() -> usize {
    HW.with(|hw| hw.tag_flushes.get())
}

/// CPU 1 visits an mm and leaves it for another's again and again; each time CPU 0 flushes the mm. The interrupts that
/// this costs are all useless: CPU 1 has left.
fn useless_ipis<Arch>(rounds: usize) -> usize
where
    Toy<2, 1, Arch>: Platform<MmData = Free>,
    Refcount: LazyTlb<Toy<2, 1, Arch>>,
{
    let machine = Machine::boot(Toy::NEW, Refcount);
    let a = machine.mm(0xa000);
    let (owner, visitor) = (machine.user(a.clone()), machine.user(a.clone()));
    let other = machine.user(machine.mm(0xb000));
    on_cpu(0, || machine.switch(machine.idle[0], owner));
    on_cpu(1, || machine.switch(machine.idle[1], other));
    for _ in 0..rounds {
        on_cpu(1, || {
            machine.switch(other, visitor);
            machine.switch(visitor, other);
        });
        on_cpu(0, || machine.switcher.flush_tlb_mm_range(&a, FlushRange::All, false));
    }
    assert!(tag_flushes() >= rounds, "CPU 0 flushes each time");
    ipis()
}

/// B34: a mask that is kept lazily makes each flush interrupt CPUs that have left, unless they are filtered and the mask is
/// trimmed now and then only (Linux commit 209954cbc7d0; Rik van Riel, 4 December 2024, "x86,mm: only trim the mm_cpumask
/// once a second").
#[test]
fn trimming_is_no_storm() {
    assert_eq!(useless_ipis::<X86_6_12>(256), 0, "the mask is exact");
    assert_eq!(useless_ipis::<X86_6_14>(256), 4, "one flush in 64 trims");
    assert_eq!(useless_ipis::<X86_6_14<6, 1>>(256), 256, "each flush trims: the storm");
}

/// A lazy CPU is left alone by a flush and makes up for it when it comes back; not where page tables are freed.
fn lazy_cpus<Arch>()
where
    Toy<2, 1, Arch>: Platform<MmData = Free>,
    Refcount: LazyTlb<Toy<2, 1, Arch>>,
{
    let machine = Machine::boot(Toy::NEW, Refcount);
    let a = machine.mm(0xa000);
    let (owner, thread) = (machine.user(a.clone()), machine.user(a.clone()));
    on_cpu(0, || machine.switch(machine.idle[0], owner));
    on_cpu(1, || {
        machine.switch(machine.idle[1], thread);
        machine.switch(thread, machine.idle[1]);
    });
    let flush = |freed| on_cpu(0, || machine.switcher.flush_tlb_mm_range(&a, FlushRange::All, freed));

    flush(false);
    assert_eq!((ipis(), tag_flushes()), (0, 1), "only CPU 0's own");
    on_cpu(1, || {
        machine.switch(machine.idle[1], thread);
        assert_eq!(tag_flushes(), 2, "CPU 1 catches up");
        machine.switch(thread, machine.idle[1]);
        machine.switch(machine.idle[1], thread);
        assert_eq!(tag_flushes(), 2, "nothing was flushed meanwhile");
        machine.switch(thread, machine.idle[1]);
    });

    flush(true);
    assert_eq!((ipis(), machine.root(1)), (1, INIT_ROOT), "nobody walks what is freed");
    assert!(
        on_cpu(1, || machine.irqs_off(|irqs_off| machine.switcher.is_active_mm(irqs_off, &a))),
        "the pointer stays"
    );
    on_cpu(1, || machine.switch(machine.idle[1], thread));
    assert_eq!(machine.root(1), 0xa000);
    assert_eq!(machine.warnings(), []);
}

#[test]
fn lazy_cpus_are_passed_by_and_catch_up() {
    lazy_cpus::<X86_6_12>();
    lazy_cpus::<X86_6_14>();
}
