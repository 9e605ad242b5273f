// Loaded before Portkey's gateway, which listens on every interface and has no setting for it: an open proxy, while it runs.
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, _host, ready) {
  return listen.call(this, port, "127.0.0.1", ready);
};
