package wire

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNoPeer is returned when the other end of a connection is no process that
// can be looked into: it has ended, say.
var ErrNoPeer = errors.New("nobody at the other end")

// Peer is the other end of a connection from this machine.
type Peer struct{ socket string }

// PeerOf finds out what is at the other end of c. It works on Linux only.
func PeerOf(c net.Conn) (Peer, error) {
	ours, theirs := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return Peer{}, fmt.Errorf("look for the peer of %s: %w; Linux is needed", theirs, err)
	}
	defer func() { _ = f.Close() }() // only read from
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st queues tr retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && port(fields[1]) == theirs.Port && port(fields[2]) == ours.Port {
			return Peer{"socket:[" + fields[9] + "]"}, nil
		}
	}
	return Peer{}, errors.Join(ErrNoPeer, lines.Err())
}

// port reads that of "0100007F:1F90".
func port(address string) int {
	_, hex, _ := strings.Cut(address, ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	if err != nil {
		return 0 // the line of headings
	}
	return int(n)
}

// Is says whether it is the process with that id.
func (p Peer) Is(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil && target == p.socket {
			return true
		}
	}
	return false
}
