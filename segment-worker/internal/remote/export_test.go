package remote

import (
	"context"

	"github.com/pkg/sftp"
)

// DialSmall is Dial to a server as if it did not announce that it takes packets
// above 32 KiB.
func DialSmall(ctx context.Context, cfg Config) (*Session, error) {
	s, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.concurrent = smallPackets
	return s, sftp.MaxPacketUnchecked(smallPacketBytes)(s.sftp)
}
