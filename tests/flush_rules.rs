//! x86's flush rules natively, one CPU after the other: whom a flush interrupts, and what a CPU that was passed by makes up
//! for.

use lazytlb::core::mm_switch::FlushRange;
use lazytlb::shootdown::{X86_6_12, X86_6_14, X86Broadcast};
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

/// AMD's rule: an mm that runs on two CPUs gets a global ASID, the other CPU is moved over, and from then on a flush
/// interrupts nobody and leaves a lazy CPU where it is. There is one ASID: a second mm has none until the first is gone and
/// everything was flushed.
#[test]
fn an_mm_on_two_cpus_is_flushed_by_broadcast() {
    let machine = Machine::boot(Toy::<2, 1, X86Broadcast<2, 64, 2>>::NEW, Refcount);
    let flush = |mm: &_, freed| on_cpu(0, || machine.switcher.flush_tlb_mm_range(mm, FlushRange::All, freed));
    let broadcasts = || HW.with(|hw| (hw.broadcasts.get(), hw.unsynced.get()));

    let a = machine.mm(0xa000);
    let (owner, thread) = (machine.user(a.clone()), machine.user(a.clone()));
    on_cpu(0, || machine.switch(machine.idle[0], owner));
    flush(&a, false);
    on_cpu(1, || machine.switch(machine.idle[1], thread));
    flush(&a, false);
    assert_eq!((ipis(), broadcasts()), (1, ([0, 0], 0)), "as 6.14, up to the flush that finds it on two CPUs");
    flush(&a, false);
    assert_eq!((ipis(), broadcasts()), (2, ([1, 0], 0)), "both: CPU 1 is moved over");
    flush(&a, false);
    on_cpu(1, || machine.switch(thread, machine.idle[1]));
    let (flushed, loads) = (tag_flushes(), HW.with(|hw| hw.root_loads.get()));
    flush(&a, true);
    assert_eq!((ipis(), broadcasts()), (2, ([3, 0], 0)), "a broadcast alone");
    assert_eq!(machine.root(1), 0xa000, "the lazy CPU stays, though tables are freed");
    on_cpu(1, || machine.switch(machine.idle[1], thread));
    assert_eq!((tag_flushes(), HW.with(|hw| hw.root_loads.get())), (flushed, loads), "it has nothing to catch up with");

    let b = machine.mm(0xb000);
    let (cat, cat_thread) = (machine.user(b.clone()), machine.user(b.clone()));
    on_cpu(0, || machine.switch(owner, cat));
    on_cpu(1, || machine.switch(thread, cat_thread));
    flush(&b, false);
    flush(&b, false);
    assert_eq!((ipis(), broadcasts()), (4, ([3, 0], 0)), "no ASID is left");
    drop(a);
    for (cpu, task, back_to) in [(0, owner, cat), (1, thread, cat_thread)] {
        on_cpu(cpu, || {
            machine.switch(back_to, task);
            // SAFETY: it runs here.
            unsafe { machine.switcher.exit_mm(task) };
            machine.switch(task, back_to);
        });
    }
    flush(&b, false);
    flush(&b, false);
    assert_eq!(broadcasts().0[1], 1, "all is flushed before A's ASID is handed out again");
    assert_eq!(machine.warnings(), []);
}
