package source

import "time"

// SetSilence shortens how long the object store may send nothing.
func (o *Opener) SetSilence(d time.Duration) { o.silence = d }
