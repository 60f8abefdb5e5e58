//! A kernel without an allocator and without initialisation code: `init_mm`, the per-CPU areas and the switch path are
//! statics, made at compile time. There is not a line here that runs before the first switch.
//!
//! It is also the smallest complete example of a [`Platform`]: a machine of two CPUs whose hardware is stubbed by
//! statics that the tests look at.

#![cfg_attr(not(test), no_std)]

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use atomic::Atomic;
use bytemuck::NoUninit;

use lazytlb::core::memory::{At, Label};
use lazytlb::core::mm::MmCore;
use lazytlb::core::mm_switch::{IpiFlush, Loaded};
use lazytlb::core::native::{Local, Native};
use lazytlb::core::platform::{Context, IpisInterrupt, Root};
use lazytlb::core::smp::CallSlot;
use lazytlb::core::switcher::Cpu;
use lazytlb::hazard::convert::HazardSlot;
use lazytlb::{CpuId, CpuMask, HazardConvert, Memory, Mm, Platform, Switcher, Task};

/// How many CPUs the machine has.
pub const CPUS: usize = 2;

/// The kernel, as the library sees it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

/// The strategy this kernel was built with.
pub type Strategy = HazardConvert;

/// What CPU 0 has in its root register.
pub static CR3: AtomicUsize = AtomicUsize::new(0);

/// What a CPU has to know about the code that it runs: one word, read and written at once, so that an interrupt never
/// sees half of a change. Linux packs its preempt_count for the same reason. Aligned to its size, else the `atomic` crate
/// could not do it without a lock, and says so below.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C, align(4))]
struct Running {
    irqs_off: bool,
    in_hardirq: bool,
    preempt_count: u16,
}

static RUNNING: Atomic<Running> = Atomic::new(Running { irqs_off: false, in_hardirq: false, preempt_count: 0 });
const _: () = assert!(Atomic::<Running>::is_lock_free());

/// Changes the word. Only its CPU does, and an interrupt that comes in between puts back what it changes.
fn change(f: impl FnOnce(&mut Running)) -> Running {
    let before = RUNNING.load(Ordering::Relaxed);
    let mut after = before;
    f(&mut after);
    RUNNING.store(after, Ordering::Relaxed);
    before
}

impl Memory for Kernel {
    type AtomicUsize = AtomicUsize;
    type AtomicPtr<T> = AtomicPtr<T>;
    type LocalUsize = Local<AtomicUsize>;
    type LocalPtr<T> = Local<AtomicPtr<T>>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }

    fn spin_hint(self) {
        Native.spin_hint();
    }
}

// SAFETY: only CPU 0 ever runs in this example, without interrupts, and nothing is freed.
unsafe impl Platform for Kernel {
    type Arch = IpiFlush;
    type PerCpu<T> = [T; CPUS];
    type MaskWords = [AtomicUsize; 1];
    type IrqFlags = bool;
    type MmData = ();

    fn nr_cpu_ids(self) -> usize {
        CPUS
    }

    fn smp_processor_id(self) -> CpuId {
        CpuId::new(0)
    }

    fn cpu_online(self, cpu: CpuId) -> bool {
        cpu.get() == 0
    }

    fn local_irq_save(self, _: Label) -> bool {
        change(|running| running.irqs_off = true).irqs_off
    }

    unsafe fn local_irq_restore(self, flags: bool) {
        change(|running| running.irqs_off = flags);
    }

    fn preempt_disable(self) {
        change(|running| running.preempt_count += 1);
    }

    unsafe fn preempt_enable(self) {
        change(|running| running.preempt_count -= 1);
    }

    fn context(self) -> Context {
        let Running { irqs_off, in_hardirq, preempt_count } = RUNNING.load(Ordering::Relaxed);
        Context {
            in_nmi: false,
            in_hardirq,
            in_softirq: false,
            preempt_disabled: preempt_count > 0,
            irqs_disabled: irqs_off,
        }
    }

    unsafe fn load_root(self, root: Root) {
        CR3.store(root.0, Ordering::Relaxed);
    }

    fn read_root(self) -> Root {
        Root(CR3.load(Ordering::Relaxed))
    }

    fn flush_tlb_local(self) {}

    fn kick(self, _: &CpuMask<Self>) {}

    unsafe fn unmap_all(self, _: &MmCore<Self>) {}

    unsafe fn free_tables(self, _: &MmCore<Self>) {}

    unsafe fn free_mm(self, _: NonNull<MmCore<Self>>) {}
}

// SAFETY: the only CPU that is ever online takes its interrupts.
unsafe impl IpisInterrupt for Kernel {}

/// The root of the kernel's own page tables.
pub const INIT_ROOT: usize = 0x1000;

const fn mask(bits: usize) -> CpuMask<Kernel> {
    CpuMask::from_parts([AtomicUsize::new(bits)])
}

const fn null<T>() -> Local<AtomicPtr<T>> {
    Local::from_raw(AtomicPtr::new(null_mut()))
}

const fn slot() -> HazardSlot<Kernel> {
    HazardSlot::from_parts(AtomicPtr::new(null_mut()), AtomicPtr::new(null_mut()))
}

const fn cpu() -> Cpu<Kernel, Strategy> {
    let arch = Loaded::from_parts(null(), Local::from_raw(AtomicUsize::new(0)));
    let calls = CallSlot::from_parts(AtomicPtr::new(null_mut()), mask(0), mask(0));
    Cpu::from_parts(null(), AtomicPtr::new(null_mut()), null(), null(), arch, slot(), calls)
}

/// The kernel's own address space.
pub static INIT_MM: Mm<Kernel, Strategy> = {
    let (count, users, root) = (AtomicUsize::new(1), AtomicUsize::new(1), AtomicUsize::new(INIT_ROOT));
    // SAFETY: both are statics, the counts are 1, the kernel's page table is never freed.
    unsafe { Mm::from_parts(&SWITCHER, count, users, root, mask(0), (), (), ()) }
};

/// The switch path.
pub static SWITCHER: Switcher<Kernel, Strategy> =
    // SAFETY: INIT_MM is a static and names this one.
    unsafe { Switcher::from_parts(Kernel, HazardConvert::new(), (), &INIT_MM, [const { cpu() }; CPUS]) };

/// The first task.
pub static IDLE: Task<Kernel> = Task::from_parts(null());

#[cfg(test)]
mod tests {
    use lazytlb::IrqsOff;

    use super::*;

    #[test]
    fn a_static_machine_boots_and_switches() {
        let platform = Kernel;
        platform.local_irq_save(Label::NONE);
        // SAFETY: just disabled.
        let irqs_off = unsafe { IrqsOff::assume(platform) };
        // SAFETY: IDLE is a static.
        unsafe { SWITCHER.sched_init(&irqs_off, &IDLE) };
        assert_eq!(CR3.load(Ordering::Relaxed), INIT_ROOT);

        // SAFETY: the switcher is a static, the mm is leaked.
        let mm = Box::leak(Box::new(unsafe { Mm::new(NonNull::from(&SWITCHER), platform, Root(0xa000), ()) }));
        let task = Box::leak(Box::new(Task::kthread()));
        // SAFETY: asked once; the mm is leaked.
        let user = unsafe { mm.into_user() };
        // SAFETY: it is new.
        unsafe { task.copy_mm(user) };
        // SAFETY: IDLE runs.
        unsafe { SWITCHER.context_switch(&irqs_off, &IDLE, task) };
        SWITCHER.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        assert_eq!(CR3.load(Ordering::Relaxed), 0xa000);
        // SAFETY: task runs.
        unsafe { SWITCHER.context_switch(&irqs_off, task, &IDLE) };
        SWITCHER.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        assert_eq!(CR3.load(Ordering::Relaxed), 0xa000, "idle borrows");
        assert!(SWITCHER.is_active_mm(&irqs_off, mm));
    }
}
