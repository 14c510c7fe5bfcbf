//! Processes that the host has started on this machine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::respawn::{Life, Respawn};
use super::{Connected, Host, Shared, Started, monitor};
use crate::dispatcher::{Event, PeerId, Target};
use crate::loss::Loss;
use crate::process::{self, Child, Program};
use crate::task::Task;
use crate::transport::Address;

impl Host {
    /// Hands over a task to a process started for it alone, which will dial
    /// `address` and should leave after one task.
    ///
    /// # Errors
    /// The process cannot be started or the address not be listened at. Nothing
    /// will come of the task then.
    pub fn submit_to_new(
        &self,
        task: Arc<Task>,
        timeout: Option<Duration>,
        address: &Address,
        program: &Program,
    ) -> io::Result<()> {
        let endpoint = self.0.listen(address, None, true)?;
        // First: the process may be fast.
        self.submit(task, timeout, Target::Endpoint(endpoint));
        let shared = self.0.clone();
        let started = self.0.start(program, None, move |child| {
            shared.stop_listening(endpoint);
            let loss = Loss::new(0, crate::sys::node_name(), child.pid());
            loss.tell(child.last_words());
            // If it has connected, the link has something to say about that, too.
            shared.act(None, Some(loss.into()), |dispatcher, now, out| {
                dispatcher.handle(now, Event::Abandoned { endpoint }, out);
            });
            shared.process_gone(child);
            shared.state.lock().dispatcher.release_endpoint(endpoint);
        });
        match started {
            Ok(child) => {
                self.0.end_if_closed(&child);
                Ok(())
            }
            Err(e) => {
                self.0.stop_listening(endpoint);
                self.0.handle(Event::Abandoned { endpoint }, None);
                self.0.state.lock().dispatcher.release_endpoint(endpoint);
                Err(e)
            }
        }
    }

    /// Starts a process that will dial one of the URLs. It is not started again: see [`keep`](Self::keep) for that.
    pub fn launch(&self, program: &Program) -> io::Result<Arc<Child>> {
        let program = program.clone();
        self.keep(Respawn::Never, move |_| program.clone())
    }
}

impl Shared {
    /// Starts a process, and keeps it in mind for as long as anybody attends to it. The lock is held meanwhile: the process
    /// may connect before this is done, and has to be found then.
    pub(super) fn start(
        &self,
        program: &Program,
        life: Option<Arc<Life>>,
        on_exit: impl FnOnce(&Child) + Send + 'static,
    ) -> io::Result<Arc<Child>> {
        let mut children = self.children.lock();
        let child = process::start(program, on_exit)?;
        children.retain(|started| started.child.strong_count() > 0);
        children.push(Started {
            child: Arc::downgrade(&child),
            life,
        });
        Ok(child)
    }

    /// The host may have been closed while a process was started. Waits for its end, so not on the I/O thread.
    pub(super) fn end_if_closed(&self, child: &Arc<Child>) {
        if self.is_closed() {
            process::end_unconnected(std::slice::from_ref(child));
        }
    }

    /// Whether a process that was started here has not connected yet.
    pub(super) fn is_expecting(&self) -> bool {
        let children = self.children.lock();
        let mut children = children.iter().filter_map(|s| s.child.upgrade());
        children.any(|child| child.is_on_its_way())
    }

    /// The process of this id that was started here, if it is still attended to.
    pub(super) fn started(&self, pid: u32) -> Option<(Arc<Child>, Option<Arc<Life>>)> {
        let children = self.children.lock();
        let mut alive = children
            .iter()
            .filter_map(|s| Some((s.child.upgrade()?, s.life.clone())));
        alive.find(|(child, _)| child.pid() == pid)
    }

    /// A peer is gone. Another connection of its process may have taken its place.
    pub(super) fn forget_process(&self, peer: PeerId) {
        let pid = self.known.lock().local_process(peer);
        let Some(pid) = pid else { return };
        let mut processes = self.processes.lock();
        if processes.get(&pid) == Some(&peer) {
            processes.remove(&pid);
        }
    }

    /// A process that we started is gone; one that was killed has left its
    /// session directory behind.
    pub(super) fn process_gone(&self, child: &Child) {
        let peer = self.processes.lock().remove(&child.pid());
        // What it has said is still read, but its link may not end by itself: a
        // process forked from it may hold it open.
        if let Some(peer) = peer {
            if let Some(Connected { link, .. }) = self.state.lock().links.get(&peer) {
                link.close();
            }
        }
        monitor::process_gone(child.pid());
        let Some(directory) = child.directory() else {
            return;
        };
        let ours = directory.file_name().is_some_and(|name| {
            // R names it so; nothing else may ever be removed here.
            name.to_string_lossy().starts_with("Rtmp")
        });
        if ours && directory.is_absolute() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}
