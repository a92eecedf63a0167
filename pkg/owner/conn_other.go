//go:build !unix

package owner

// write asks the tenure once: there is no way to ask before each system call.
func (c *conn) write(p []byte) (int, error) { return c.writeWhole(p) }
