//! Connections whose peer has not introduced itself yet: there is a limit to their number and to their time.
//!
//! Anybody may connect. At most [`STRANGERS`] connections wait in a queue; above that, the one that has waited longest
//! is closed. So a crowd of idle ones keeps no daemon out. Whoever is still a stranger after [`INTRODUCTION_TIMEOUT`] is
//! closed, too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::nng::Connection;
use crate::sys::io_thread;

/// Limit of connections that wait, for each place where they are waited for.
const STRANGERS: usize = 256;
/// Time for a peer to introduce itself.
pub(crate) const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Those that wait, oldest first.
#[derive(Default)]
pub(crate) struct Strangers(Mutex<VecDeque<Arc<Connection>>>);

impl Strangers {
    /// Lets a connection wait, until it is [forgotten](Self::forget). To be called before it is started.
    pub(crate) fn admit(self: &Arc<Self>, connection: &Arc<Connection>) {
        let oldest = {
            let mut queue = self.0.lock();
            queue.push_back(connection.clone());
            match queue.len() > STRANGERS {
                true => queue.pop_front(),
                false => None,
            }
        };
        if let Some(oldest) = oldest {
            oldest.close();
        }
        let strangers = Arc::downgrade(self);
        let weak = Arc::downgrade(connection);
        io_thread::handle().spawn(async move {
            tokio::time::sleep(INTRODUCTION_TIMEOUT).await;
            if let (Some(strangers), Some(connection)) = (strangers.upgrade(), weak.upgrade()) {
                if strangers.forget(&connection) {
                    connection.close();
                }
            }
        });
    }

    /// The connection is no stranger any more, or it has ended. Returns whether it was one.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) -> bool {
        let mut queue = self.0.lock();
        let at = queue.iter().position(|c| Arc::ptr_eq(c, connection));
        at.and_then(|at| queue.remove(at)).is_some()
    }

    /// Closes all of them.
    pub(crate) fn close(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        for connection in all {
            connection.close();
        }
    }
}
