package completion

import "time"

// Hurry shortens how often w looks at its jobs, and how long it tells nothing.
func (w *Watch) Hurry(look, tell time.Duration) { w.lookEvery, w.tellEvery = look, tell }
