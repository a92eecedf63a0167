package completion

import "time"

// Hurry shortens how often w looks at its jobs, and how long it tells nothing.
func (w *Watch) Hurry(look, tell time.Duration) { w.lookEvery, w.tellEvery = look, tell }

// Suspect shortens how long the queue may end before what was stored for a job.
func (w *Watch) Suspect(after time.Duration) { w.behindFor = after }
