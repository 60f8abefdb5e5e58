//! [`Host`], the platform.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::sync::atomic::{Ordering::*, compiler_fence};
use std::thread;

use lazytlb::core::MmCore;
use lazytlb::core::memory::{At, Label, Memory};
use lazytlb::core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange, IpiUnlazy};
use lazytlb::core::native::Native;
use lazytlb::core::platform::{Clock, Context, IpisInterrupt, IrqGuard, MaskCoversLazy, PerCpu, Root, Worker};
use lazytlb::{CpuId, CpuMask, Platform, Warning};

use crate::hardware::{CpuWords, Finding, Hardware, Interrupts};
use crate::signals;

/// The most CPUs: the words of a mask have bits for so many.
pub(crate) const MOST_CPUS: usize = 128;

thread_local! {
    /// The CPU that this thread is, and its machine.
    static CPU: Cell<Option<(usize, &'static Hardware)>> = const { Cell::new(None) };
}

/// The calling thread is this CPU from now on.
pub(crate) fn become_cpu(cpu: usize, hardware: &'static Hardware) {
    CPU.set(Some((cpu, hardware)));
}

/// A signal has come.
pub(crate) fn interrupted() {
    if let Some((cpu, hardware)) = CPU.get() {
        serve(cpu, hardware);
    }
}

/// Serves what the CPU was kicked for, if interrupts are on. Context: on that CPU.
fn serve(cpu: usize, hardware: &'static Hardware) {
    let words = &hardware.cpus[cpu];
    while !words.irqs_off.load(Relaxed) && words.kicked.swap(false, SeqCst) {
        let &(switcher, handler) = hardware.handler.get().expect("whoever kicks has booted");
        words.irqs_off.store(true, Relaxed);
        words.in_irq.store(true, Relaxed);
        compiler_fence(SeqCst);
        handler(switcher);
        compiler_fence(SeqCst);
        words.in_irq.store(false, Relaxed);
        words.irqs_off.store(false, Relaxed);
    }
}

/// The platform: a handle to its hardware. `Arch` says how the MMU is switched and flushed:
/// [`BroadcastFlush`] by hardware, [`IpiUnlazy`] by interrupts.
pub struct Host<Arch = BroadcastFlush> {
    hardware: &'static Hardware,
    arch: PhantomData<fn() -> Arch>,
}

impl<Arch> Clone for Host<Arch> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Arch> Copy for Host<Arch> {}

impl<Arch> fmt::Debug for Host<Arch> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hardware.fmt(f)
    }
}

impl<Arch> Host<Arch> {
    fn cpu(self) -> usize {
        let (cpu, _) = CPU.get().expect("the thread is a CPU");
        cpu
    }

    fn words(self) -> &'static CpuWords {
        &self.hardware.cpus[self.cpu()]
    }

    /// Flushes a CPU's walk cache. Context: interrupts off, or one that flushes might come while its lock is held.
    fn flushes(self, cpu: usize) {
        debug_assert!(self.words().irqs_off.load(Relaxed), "an interrupt might wait for what it has interrupted");
        self.hardware.flush(cpu);
    }
}

/// A [`Host`] of some architecture.
pub trait HostPlatform: Platform<MmData = ()> + Clock + Send + Sync {
    /// Of this machine.
    #[doc(hidden)]
    fn of(hardware: &'static Hardware) -> Self;

    /// The machine below the kernel.
    fn hardware(self) -> &'static Hardware;

    /// Serves what this CPU was kicked for, if interrupts are on.
    fn poll(self) {
        serve(self.smp_processor_id().get(), self.hardware());
    }
}

/// Storage for each CPU, on the heap.
#[derive(Debug)]
pub struct CpuVec<T>(Box<[T]>);

impl<T> PerCpu<T> for CpuVec<T> {
    fn from_fn(nr_cpu_ids: usize, init: impl FnMut(CpuId) -> T) -> Self {
        CpuVec((0..nr_cpu_ids).map(CpuId::new).map(init).collect())
    }

    fn get(&self, cpu: CpuId) -> &T {
        &self.0[cpu.get()]
    }
}

impl<Arch: 'static> Memory for Host<Arch> {
    type AtomicUsize = <Native as Memory>::AtomicUsize;
    type AtomicPtr<T> = <Native as Memory>::AtomicPtr<T>;
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }

    fn spin_hint(self) {
        // There may be fewer processors than CPUs.
        thread::yield_now();
    }
}

/// A platform names its architecture, so each is a platform of its own; they differ in nothing else.
macro_rules! platform {
    ($arch:ty) => {
        // SAFETY: a thread is one CPU for as long as it lives; what interrupts it runs on it, where interrupts are on; free_mm
        // only says that the mm is free.
        unsafe impl Platform for Host<$arch> {
            type Arch = $arch;
            type PerCpu<T> = CpuVec<T>;
            type MaskWords = [<Native as Memory>::AtomicUsize; MOST_CPUS / usize::BITS as usize];
            type IrqFlags = bool;
            type MmData = ();

            const DEBUG_VM: bool = true;

            fn nr_cpu_ids(self) -> usize {
                self.hardware.cpus.len()
            }

            fn smp_processor_id(self) -> CpuId {
                CpuId::new(self.cpu())
            }

            fn cpu_online(self, cpu: CpuId) -> bool {
                self.hardware.cpus[cpu.get()].online.load(SeqCst)
            }

            fn local_irq_save(self, _: Label) -> bool {
                let words = self.words();
                // An interrupt between the two leaves it as it was.
                let before = words.irqs_off.load(Relaxed);
                words.irqs_off.store(true, Relaxed);
                compiler_fence(SeqCst);
                before
            }

            unsafe fn local_irq_restore(self, flags: bool) {
                compiler_fence(SeqCst);
                self.words().irqs_off.store(flags, Relaxed);
                compiler_fence(SeqCst);
                self.poll();
            }

            fn preempt_disable(self) {
                let count = &self.words().preempt_count;
                count.store(count.load(Relaxed) + 1, Relaxed);
            }

            unsafe fn preempt_enable(self) {
                let count = &self.words().preempt_count;
                count.store(count.load(Relaxed) - 1, Relaxed);
            }

            fn context(self) -> Context {
                let words = self.words();
                Context {
                    in_nmi: false,
                    in_hardirq: words.in_irq.load(Relaxed),
                    in_softirq: false,
                    preempt_disabled: words.preempt_count.load(Relaxed) > 0,
                    irqs_disabled: words.irqs_off.load(Relaxed),
                }
            }

            unsafe fn load_root(self, Root(root): Root) {
                let cpu = self.cpu();
                if let Some(before_load) = self.hardware.before_load.get() {
                    before_load(cpu, root);
                }
                self.hardware.cpus[cpu].root.store(root, SeqCst);
                // Whoever frees it says so first and looks at the roots then: one of the two sees the other.
                if !self.hardware.is_alive(root) {
                    self.hardware.finds(Finding::LoadsFreed { cpu, root });
                }
                self.flushes(cpu);
            }

            fn read_root(self) -> Root {
                Root(self.words().root.load(SeqCst))
            }

            fn flush_tlb_local(self) {
                let flags = self.local_irq_save(Label::NONE);
                self.flushes(self.cpu());
                // SAFETY: saved above.
                unsafe { self.local_irq_restore(flags) };
            }

            fn kick(self, targets: &CpuMask<Self>) {
                for target in targets.cpus(Relaxed) {
                    let words = &self.hardware.cpus[target.get()];
                    words.kicked.store(true, SeqCst);
                    self.hardware.kicks.fetch_add(1, Relaxed);
                    if self.hardware.interrupts == Interrupts::Signals {
                        // SAFETY: it is online, and its thread ends when it is not and all others have seen that.
                        unsafe { signals::interrupt(words.thread.load(SeqCst)) };
                    }
                }
            }

            fn relax(self) {
                if self.hardware.interrupts == Interrupts::Polled {
                    self.poll();
                }
                self.spin_hint();
            }

            unsafe fn unmap_all(self, mm: &MmCore<Self>) {
                self.hardware.unmap(mm.root().0);
            }

            unsafe fn free_tables(self, mm: &MmCore<Self>) {
                self.hardware.free_tables(mm.root().0);
            }

            unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
                // SAFETY: memory of mms is never given back.
                let mm = unsafe { mm.as_ref() };
                let Root(root) = mm.root();
                let context = self.context();
                if context.irqs_disabled || context.in_hardirq {
                    self.hardware.finds(Finding::FreedIrqsOff { root });
                }
                self.hardware.free_root(root);
            }

            fn warn(self, warning: Warning) {
                self.hardware.finds(Finding::Warned(warning));
            }
        }

        impl HostPlatform for Host<$arch> {
            fn of(hardware: &'static Hardware) -> Self {
                Host { hardware, arch: PhantomData }
            }
            fn hardware(self) -> &'static Hardware {
                self.hardware
            }
        }

        impl Worker for Host<$arch> {
            fn queue_work(self) {
                self.hardware.work_asked.store(true, SeqCst);
            }
        }

        impl Clock for Host<$arch> {
            fn jiffies(self) -> usize {
                self.hardware.jiffies()
            }

            /// Sooner than asked for does no harm.
            fn queue_work_at(self, _: usize) {
                self.queue_work();
            }
        }

        // SAFETY: a signal comes between any two instructions; who polls does so in each loop and wherever interrupts are enabled.
        unsafe impl IpisInterrupt for Host<$arch> {}
    };
}

platform!(BroadcastFlush);
platform!(IpiUnlazy);

impl BroadcastTlb for Host<BroadcastFlush> {
    /// All CPUs', whatever they have.
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {
        let _section = IrqGuard::new(self, Label::NONE);
        (0..self.hardware.cpus.len()).for_each(|cpu| self.flushes(cpu));
    }
}

// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for Host<BroadcastFlush> {}
// SAFETY: IpiUnlazy takes a CPU out of a mask, and ends its borrow in the flush, where it takes active_mm off the mm.
unsafe impl MaskCoversLazy for Host<IpiUnlazy> {
    const FLUSH_ENDS_BORROWS: bool = true;
}
