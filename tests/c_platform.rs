//! A platform that is a table of C function pointers: the shape in which a C kernel will plug in.
//!
//! Proof that the traits allow it: a handle with data in it, an architecture that only calls out, mm data that is an
//! opaque pointer. The "C kernel" below records what it is asked to do.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

use lazytlb::core::memory::{At, Label};
use lazytlb::core::mm::{MmCore, MmPtr};
use lazytlb::core::mm_switch::{ArchHost, FlushRange, MmSwitch};
use lazytlb::core::native::{Local, Native};
use lazytlb::core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, Root, Worker};
use lazytlb::{AnyLazyTlb, CpuId, CpuMask, IrqsOff, Memory, Mm, Platform, Switcher, Task};

/// What the C kernel fills in. Masks are passed as their words, an mm as the pointer that the kernel gave it.
#[repr(C)]
struct Ops {
    nr_cpu_ids: extern "C" fn() -> usize,
    smp_processor_id: extern "C" fn() -> usize,
    cpu_online: extern "C" fn(usize) -> bool,
    local_irq_save: extern "C" fn() -> usize,
    local_irq_restore: extern "C" fn(usize),
    preempt_disable: extern "C" fn(),
    preempt_enable: extern "C" fn(),
    irqs_disabled: extern "C" fn() -> bool,
    load_root: extern "C" fn(usize),
    read_root: extern "C" fn() -> usize,
    flush_tlb_local: extern "C" fn(),
    flush_tlb_all_cpus: extern "C" fn(*mut c_void),
    kick: extern "C" fn(*const usize, usize),
    free_tables: extern "C" fn(*mut c_void),
    free_mm: extern "C" fn(*mut c_void),
    queue_work: extern "C" fn(),
    jiffies: extern "C" fn() -> usize,
    queue_work_at: extern "C" fn(usize),
}

#[derive(Clone, Copy)]
struct CPlatform(&'static Ops);

impl Memory for CPlatform {
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

// SAFETY: as safe as the C kernel's table; the one below runs CPU 0 only, without interrupts.
unsafe impl Platform for CPlatform {
    type Arch = CArch;
    type PerCpu<T> = [T; 4];
    type MaskWords = [AtomicUsize; 1];
    type IrqFlags = usize;
    type MmData = *mut c_void;

    fn nr_cpu_ids(self) -> usize {
        (self.0.nr_cpu_ids)()
    }

    fn smp_processor_id(self) -> CpuId {
        CpuId::new((self.0.smp_processor_id)())
    }

    fn cpu_online(self, cpu: CpuId) -> bool {
        (self.0.cpu_online)(cpu.get())
    }

    fn local_irq_save(self, _: Label) -> usize {
        (self.0.local_irq_save)()
    }

    unsafe fn local_irq_restore(self, flags: usize) {
        (self.0.local_irq_restore)(flags);
    }

    fn preempt_disable(self) {
        (self.0.preempt_disable)();
    }

    unsafe fn preempt_enable(self) {
        (self.0.preempt_enable)();
    }

    fn context(self) -> Context {
        Context {
            in_nmi: false,
            in_hardirq: false,
            in_softirq: false,
            preempt_disabled: false,
            irqs_disabled: (self.0.irqs_disabled)(),
        }
    }

    unsafe fn load_root(self, root: Root) {
        (self.0.load_root)(root.0);
    }

    fn read_root(self) -> Root {
        Root((self.0.read_root)())
    }

    fn flush_tlb_local(self) {
        (self.0.flush_tlb_local)();
    }

    fn kick(self, targets: &CpuMask<Self>) {
        let word = targets.cpus(core::sync::atomic::Ordering::Relaxed).fold(0, |word, cpu| word | 1 << cpu.get());
        (self.0.kick)(&word, 1);
    }

    unsafe fn unmap_all(self, _: &MmCore<Self>) {}

    unsafe fn free_tables(self, mm: &MmCore<Self>) {
        (self.0.free_tables)(*mm.data());
    }

    unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
        // SAFETY: alive until the kernel frees it in the call.
        (self.0.free_mm)(*unsafe { mm.as_ref() }.data());
    }
}

impl Worker for CPlatform {
    fn queue_work(self) {
        (self.0.queue_work)();
    }
}

impl Clock for CPlatform {
    fn jiffies(self) -> usize {
        (self.0.jiffies)()
    }

    fn queue_work_at(self, at: usize) {
        (self.0.queue_work_at)(at);
    }
}

// SAFETY: the C kernel says so.
unsafe impl IpisInterrupt for CPlatform {}
// SAFETY: CArch never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for CPlatform {}

/// An architecture that calls out for everything.
struct CArch;

impl MmSwitch<CPlatform> for CArch {
    type CpuState = ();
    type MmState = ();

    const SWITCH_MM_IS_BARRIER: bool = false;

    unsafe fn switch_mm_irqs_off(
        host: &impl ArchHost<CPlatform>,
        irqs_off: &IrqsOff<'_, CPlatform>,
        prev: MmPtr<CPlatform>,
        next: &MmCore<CPlatform>,
    ) {
        if prev != MmPtr::from(next) {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(irqs_off.cpu(), Label::NONE);
            // SAFETY: `next` lives until the CPU leaves it.
            unsafe { host.platform().load_root(next.root()) };
        }
    }

    fn enter_lazy_tlb(_: &impl ArchHost<CPlatform>, _: &IrqsOff<'_, CPlatform>, _: MmPtr<CPlatform>) {}

    fn flush_tlb(host: &impl ArchHost<CPlatform>, mm: &MmCore<CPlatform>, _: FlushRange, _: bool) {
        (host.platform().0.flush_tlb_all_cpus)(*mm.data());
    }

    unsafe fn flush_ipi(host: &impl ArchHost<CPlatform>, _: &IrqsOff<'_, CPlatform>, _: MmPtr<CPlatform>, _: bool) {
        host.platform().flush_tlb_local();
    }
}

/// What the C kernel was asked to do.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn log(line: String) {
    LOG.lock().unwrap().push(line);
}

/// The root register of the one CPU that is online.
static CR3: AtomicUsize = AtomicUsize::new(0);

extern "C" fn nothing() {}

/// Whether the library has asked for the worker.
static WORK: AtomicBool = AtomicBool::new(false);

extern "C" fn queue_work() {
    WORK.store(true, Relaxed);
}

extern "C" fn queue_work_at(_: usize) {
    queue_work();
}

static OPS: Ops = {
    extern "C" fn four() -> usize {
        4
    }
    extern "C" fn zero() -> usize {
        0
    }
    extern "C" fn online(cpu: usize) -> bool {
        cpu == 0
    }
    extern "C" fn restore(_: usize) {}
    extern "C" fn no() -> bool {
        false
    }
    extern "C" fn read_root() -> usize {
        CR3.load(Relaxed)
    }
    extern "C" fn load_root(root: usize) {
        CR3.store(root, Relaxed);
        log(format!("load {root:#x}"));
    }
    extern "C" fn flush_all(mm: *mut c_void) {
        log(format!("flush mm {:#x}", mm.addr()));
    }
    extern "C" fn kick(_: *const usize, _: usize) {}
    extern "C" fn free_tables(mm: *mut c_void) {
        log(format!("free tables of mm {:#x}", mm.addr()));
    }
    extern "C" fn free_mm(mm: *mut c_void) {
        log(format!("free mm {:#x}", mm.addr()));
    }
    Ops {
        nr_cpu_ids: four,
        smp_processor_id: zero,
        cpu_online: online,
        local_irq_save: zero,
        local_irq_restore: restore,
        preempt_disable: nothing,
        preempt_enable: nothing,
        irqs_disabled: no,
        load_root,
        read_root,
        flush_tlb_local: nothing,
        flush_tlb_all_cpus: flush_all,
        kick,
        free_tables,
        free_mm,
        queue_work,
        jiffies: zero,
        queue_work_at,
    }
};

#[test]
fn a_table_of_c_functions_is_a_platform() {
    let platform = CPlatform(&OPS);
    let mm = |switcher: &'static Switcher<CPlatform, AnyLazyTlb>, id: usize| {
        let data = core::ptr::without_provenance_mut(id);
        // SAFETY: the switcher is leaked; the C kernel frees by writing it down.
        &*Box::leak(Box::new(unsafe { Mm::new(NonNull::from(switcher), platform, Root(id << 12), data) }))
    };
    for &strategy in AnyLazyTlb::ALL {
        let init_mm = Box::leak(Box::<Mm<CPlatform, AnyLazyTlb>>::new_uninit());
        // SAFETY: init_mm is written right below and never freed.
        let switcher = unsafe { Switcher::new(platform, strategy, NonNull::from(&mut *init_mm).cast()) };
        let switcher = &*Box::leak(Box::new(switcher));
        // SAFETY: the switcher is leaked.
        init_mm.write(unsafe { Mm::new(NonNull::from(switcher), platform, Root(0x1000), core::ptr::null_mut()) });
        let [idle, task] = [(); 2].map(|()| &*Box::leak(Box::new(Task::kthread())));
        // SAFETY: this machine has no interrupts.
        let irqs_off = unsafe { IrqsOff::assume(platform) };
        // SAFETY: idle is leaked.
        unsafe { switcher.sched_init(&irqs_off, idle) };
        // SAFETY: asked once; the mm is leaked.
        let user = unsafe { mm(switcher, 0xa).into_user() };
        // SAFETY: it is new.
        unsafe { task.copy_mm(user) };
        LOG.lock().unwrap().clear();
        // SAFETY: idle runs.
        unsafe { switcher.context_switch(&irqs_off, idle, task) };
        switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        // SAFETY: task runs.
        unsafe { switcher.exit_mm(task) };
        // SAFETY: task runs.
        unsafe { switcher.context_switch(&irqs_off, task, idle) };
        switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        let other = &*Box::leak(Box::new(Task::kthread()));
        // SAFETY: asked once; the mm is leaked.
        let user = unsafe { mm(switcher, 0xb).into_user() };
        // SAFETY: it is new.
        unsafe { other.copy_mm(user) };
        // SAFETY: idle runs.
        unsafe { switcher.context_switch(&irqs_off, idle, other) };
        switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
        while WORK.swap(false, Relaxed) {
            switcher.collect();
        }

        let log = core::mem::take(&mut *LOG.lock().unwrap());
        let mut frees: Vec<&str> = log.iter().map(String::as_str).filter(|line| !line.starts_with("load")).collect();
        let freed = frees.pop();
        assert_eq!(frees, ["flush mm 0xa", "free tables of mm 0xa"], "{}", strategy.name());
        assert_eq!(freed, Some("free mm 0xa"), "{}", strategy.name());
        assert_eq!(log[0], "load 0xa000");
        let left = log.iter().position(|line| line.as_str() != "load 0xa000" && line.starts_with("load")).unwrap();
        let freed = log.iter().position(|line| line == "free mm 0xa").unwrap();
        assert!(left < freed, "{}: the MMU leaves before the root is freed: {log:?}", strategy.name());
    }
}
