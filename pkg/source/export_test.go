package source

import "time"

// SetPatience shortens how long one answer of the object store may take, and how
// long it may send nothing.
func (o *Opener) SetPatience(answer, silence time.Duration) {
	o.limits = limits{answer: answer, silence: silence}
}
